"""The NATS client of all processes. Besides `deploy.nats`, no package imports `nats`. One module per bucket or RPC."""

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from tailrace.proto.nats.blob_pins import BlobPins
from tailrace.proto.nats.blobs import BlobStore
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.counters import Counters
from tailrace.proto.nats.idempotency import Claim, Claims
from tailrace.proto.nats.leases import Deliveries, Delivery
from tailrace.proto.nats.rpc import Rpc
from tailrace.proto.nats.slots import Slots
from tailrace.proto.nats.streams import StreamSize, check, fullness, stream_size
from tailrace.proto.nats.tombstones import Tombstones
from tailrace.proto.nats.turn_log import TurnLog

__all__ = [
    "BlobPins",
    "BlobStore",
    "Claim",
    "Claims",
    "Connection",
    "Counters",
    "Deliveries",
    "Delivery",
    "Msg",
    "Rpc",
    "Slots",
    "StreamSize",
    "Subscription",
    "Tombstones",
    "TurnLog",
    "check",
    "fullness",
    "stream_size",
]
