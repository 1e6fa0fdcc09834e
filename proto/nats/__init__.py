"""The only door to NATS: a connection, and a file for each thing that is kept there or asked for."""

from tailrace.proto.nats.blob_holds import BlobPins
from tailrace.proto.nats.blobs import Bodies
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.counters import Counters
from tailrace.proto.nats.hedge_rpc import Hedge, Hedges
from tailrace.proto.nats.idempotency import Claim, Claims
from tailrace.proto.nats.leases import Deliveries, Delivery
from tailrace.proto.nats.rpc import Services
from tailrace.proto.nats.slots import Slots
from tailrace.proto.nats.streams import check, fullness
from tailrace.proto.nats.tombstones import Tombstones
from tailrace.proto.nats.turn_log import TurnLog
from tailrace.proto.nats.write_probe import Probe

__all__ = [
    "BlobPins",
    "Bodies",
    "Claim",
    "Claims",
    "Connection",
    "Counters",
    "Deliveries",
    "Delivery",
    "Hedge",
    "Hedges",
    "Probe",
    "Services",
    "Slots",
    "Tombstones",
    "TurnLog",
    "check",
    "fullness",
]
