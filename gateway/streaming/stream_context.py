"""The services that all streamed responses of a gateway use."""

import random
from collections.abc import Callable
from typing import NamedTuple

from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.limits.stream_slots import StreamSlots
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.fanout import FanOut
from tailrace.gateway.streaming.reader_history import ReaderHistory
from tailrace.proto.errors import Refused
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.runtime.flag import Flag


class StreamContext(NamedTuple):
    """Made once at startup."""

    settings: Settings
    log: TurnLog
    history: HistoryClient
    fan_out: FanOut
    authenticator: Authenticator
    slots: StreamSlots
    readers: ReaderHistory
    draining: Flag
    on_disconnect: Callable[[TurnKey, float], None]
    """Called when the client of a running turn has disconnected, with the seconds that it has to reconnect."""


def random_life_s(settings: Settings) -> float:
    """Returns the maximum age of one stream. Streams that began together do not all end at the same moment."""
    return settings.stream_life_s * random.uniform(0.9, 1.1)  # noqa: S311  # no secret


def refuse_when_draining(draining: Flag) -> None:
    """Raises Refused while this gateway drains. Call it before anything is stored, never after that."""
    if draining.is_set():
        raise Refused("draining", "this gateway is shutting down: repeat the request", retry_after_s=1)
