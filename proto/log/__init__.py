"""The only door to NATS: a connection, and a file for each thing that is kept there or asked for."""

from proto.log.bodies import Bodies
from proto.log.claims import Claim, Claims
from proto.log.connection import Connection
from proto.log.deliveries import Deliveries, Delivery
from proto.log.hedges import Hedge, Hedges
from proto.log.holds import Holds
from proto.log.limits import Counters
from proto.log.probe import Probe
from proto.log.services import Services
from proto.log.slots import Slots
from proto.log.streams import check, fullness
from proto.log.tombstones import Tombstones
from proto.log.turns import TurnLog

__all__ = [
    "Bodies",
    "Claim",
    "Claims",
    "Connection",
    "Counters",
    "Deliveries",
    "Delivery",
    "Hedge",
    "Hedges",
    "Holds",
    "Probe",
    "Services",
    "Slots",
    "Tombstones",
    "TurnLog",
    "check",
    "fullness",
]
