"""Departures: cancels a turn when its last reader has disconnected, if its `on_disconnect` says so."""

import asyncio
import re
from typing import NamedTuple

import structlog

from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.cancel import cancel
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogUnavailable, Refused, TailraceError
from tailrace.proto.ids import BEFORE_FIRST, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.race import is_set_within
from tailrace.proto.runtime.settings import NoSettings

logger = structlog.get_logger()

PRESENCE_TRIES = 3
# The pause after a failure of the log.
AGAIN_S = 1.0
GRACE = re.compile(r"grace:([0-9]{1,5})")


class _Wait(NamedTuple):
    """The wait for a reader of one turn, and when the last reconnect window closes, in the event loop's time."""

    task: asyncio.Task[None]
    open_until: float


class DisconnectPolicy:
    """Waits for readers to return to the turns that they have left."""

    def __init__(self, presence: ReaderPresence) -> None:
        self._presence = presence
        self._waiting: dict[TurnKey, _Wait] = {}

    def handle_disconnect(self, key: TurnKey, reconnect_window_s: float = 0.0) -> None:
        """Applies the policy after a reader of a running turn has disconnected. A wait that runs starts again.

        `reconnect_window_s`: the gateway closed the stream, and the reader has so many seconds to reconnect. The
        window of an earlier reader stays open; it may be the same reader.
        """
        if self._presence.fan_out.has_readers(key):
            return
        open_until = asyncio.get_running_loop().time() + reconnect_window_s
        if (before := self._waiting.pop(key, None)) is not None:
            before.task.cancel()
            open_until = max(open_until, before.open_until)
        request = self._presence.fan_out.request_of(key)
        wait_s = None if request is None else grace_s(request.on_disconnect)
        if request is not None and wait_s is None:
            return
        following = self._presence.group.create_task(self._follow_up(key, wait_s, open_until))
        self._waiting[key] = _Wait(following, open_until)
        following.add_done_callback(lambda done: self._forget(key, done))

    def _forget(self, key: TurnKey, done: asyncio.Task[None]) -> None:
        if key in self._waiting and self._waiting[key].task is done:
            del self._waiting[key]

    async def _follow_up(self, key: TurnKey, wait_s: float | None, open_until: float) -> None:
        """`wait_s` is the turn's grace period; None: it is read from the log."""
        try:
            wait_s = await self._wait_s(key) if wait_s is None else wait_s
            if wait_s is None:
                return
            pause_s = max(wait_s, open_until - asyncio.get_running_loop().time())
            while not await is_set_within(self._presence.draining, pause_s):
                try:
                    await self._end_without_readers(key)
                except LogUnavailable as error:
                    logger.info("turn without readers not ended yet", turn=key.turn, why=str(error))
                    pause_s = AGAIN_S
                else:
                    return
            # Its readers reconnect to other gateways, so this one cannot decide.
            logger.info("turn continues without readers", turn=key.turn)
        except TailraceError as error:
            logger.warning("turn continues without readers", turn=key.turn, error=str(error))

    async def _end_without_readers(self, key: TurnKey) -> None:
        """Cancels the turn unless it has a reader. Raises LogError."""
        # No answer means no readers, but only after several tries: a gateway may be busy with a large body.
        for _ in range(PRESENCE_TRIES):
            if await self._presence.has_readers_anywhere(key):
                return
        logger.info("turn has no readers", turn=key.turn)
        await cancel(self._presence.log, ScopedKey.whole(key), "on_disconnect")

    async def _wait_s(self, key: TurnKey) -> float | None:
        """Returns the turn's grace period."""
        first = await self._presence.log.read_entries(ScopedKey.whole(key), BEFORE_FIRST, limit=1)
        return grace_s(first[0].entry.on_disconnect) if first and isinstance(first[0].entry, Request) else None


def grace_s(on_disconnect: str) -> float | None:
    """Returns the grace period in seconds; None for `continue` and for values of newer versions."""
    if on_disconnect == "cancel":
        return 0.0
    grace = GRACE.fullmatch(on_disconnect)
    return float(grace[1]) if grace else None


def check_on_disconnect(new_turn: NewTurn) -> None:
    """Raises Refused for a value without meaning."""
    if new_turn.on_disconnect != "continue" and grace_s(new_turn.on_disconnect) is None:
        why = "must be `continue`, `cancel` or `grace:SECONDS`, with at most 99999 whole seconds"
        raise Refused("request_invalid", f"`on_disconnect` {why}")


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the policy, which is called for readers that disconnect."""
    policy = DisconnectPolicy(gateway.presence)
    return Parts(on_disconnect=policy.handle_disconnect, steps=OptionalSteps(check_on_disconnect=check_on_disconnect))


FEATURE = Feature(NoSettings, start)
