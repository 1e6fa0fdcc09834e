"""A recorded process that pauses at given entries, to be killed there: `python -m tests.kills.paused_process …`.

A generator with `KILLS_ROLE=pauses` stores each delta as an entry of its own. It pauses after it has stored the entry
that the turn's question names (`tag=h7-…`: the seventh), or with `h7e` before it acknowledges the turn. SIGUSR1
continues all paused turns. A generator with `KILLS_ROLE=waits` takes no turn before SIGUSR1.

A gateway whose `KILLS_ROLE` is one of MOMENTS pauses there in each POST of a turn or a batch.
"""

import os
import re
import runpy
import sys
from pathlib import Path
from signal import SIGUSR1, signal
from typing import Any, Literal, get_args

import structlog

from tailrace.generators import attempt_runner, delta_buffer
from tailrace.generators.backends import anthropic_api, large_events
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Event, Request, StoredEntry
from tailrace.proto.fold import EMPTY_TURN, Turn, fold
from tailrace.proto.ids import Seq, TurnId, TurnKey
from tailrace.proto.nats import Counters, Deliveries, Delivery, TurnLog
from tailrace.proto.nats.counters import INCREMENT
from tailrace.proto.nats.leases import Mark
from tailrace.proto.nats.log_server import Published
from tailrace.proto.ownership import ScopedKey
from tests.checker.history import HISTORY, Recorder
from tests.checker.recorded_process import record
from tests.harness.processes import ForkedProcess
from tests.harness.until import until
from tests.kills.cell import LARGE_BYTES

TAG = re.compile(r"\btag=h([0-9]+)(e?)-")
# KILLS_ROLE; without it a process runs normally.
PAUSES, WAITS = "pauses", "waits"
Moment = Literal["counted", "reserved", "stored"]
"""After the first increment of a budget, before the append, and after it."""
MOMENTS: tuple[Moment, ...] = get_args(Moment)
PAUSED_S_MAX = 90.0

logger = structlog.get_logger()


class Gate:
    """Pauses coroutines until the next `open`."""

    def __init__(self) -> None:
        self.openings = 0

    def open(self, *_: object) -> None:
        self.openings += 1

    async def pause(self, turn: TurnId) -> None:
        seen = self.openings
        logger.info("paused", turn=turn)
        await until(lambda: self.openings > seen, PAUSED_S_MAX)


def patch(gate: Gate, role: str) -> None:
    """Patches the methods at which this process pauses."""
    read_turn, append, publish_soon = TurnLog.read_turn, TurnLog.append, TurnLog.publish_soon
    take_entry, ack, take = Delivery.take_entry, Delivery.ack, Deliveries.next
    entries_left: dict[TurnKey, int] = {}
    pauses_at_request: set[TurnKey] = set()
    pauses_before_ack: set[TurnKey] = set()

    def find_pause(key: TurnKey, turn: Turn) -> None:
        found = pause_of(turn.request) if turn.request and not turn.attempt and role == PAUSES else None
        if found is not None and key not in entries_left:
            entries, is_before_ack = found
            entries_left[key] = -1 if is_before_ack else entries - 1
            if is_before_ack:
                pauses_before_ack.add(key)
            if not entries_left[key]:
                pauses_at_request.add(key)

    async def pause_at_request(key: TurnKey) -> None:
        if key in pauses_at_request:
            pauses_at_request.discard(key)
            await gate.pause(key.turn)

    def paused_take_entry(self: Delivery) -> list[StoredEntry]:
        entry = take_entry(self)
        find_pause(self.key, fold(entry))
        return entry

    async def paused_turn(self: TurnLog, key: TurnKey, known: Turn = EMPTY_TURN) -> Turn:
        turn = await read_turn(self, ScopedKey.whole(key), known)
        find_pause(key, turn)
        await pause_at_request(key)
        return turn

    async def paused_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, **options: Any) -> Chain:
        await pause_at_request(key)
        chain = await append(self, key, chain, entry, **options)
        if key in entries_left:
            entries_left[key] -= 1
            if not entries_left[key]:
                await gate.pause(key.turn)
        return chain

    def paused_publish(self: TurnLog, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        if key in pauses_at_request or entries_left.get(key) == 1:
            # `paused_append` appends it.
            return False

        def count(outcome: Seq | Exception) -> None:
            if key in entries_left and not isinstance(outcome, Exception):
                entries_left[key] -= 1
            done(outcome)

        return publish_soon(self, key, entry, fence, count)

    async def paused_ack(self: Delivery) -> None:
        if self.key in pauses_before_ack:
            pauses_before_ack.discard(self.key)
            await gate.pause(self.key.turn)
        await ack(self)

    async def waiting_next(self: Deliveries, most: int = 1, mark: Mark | None = None) -> list[Delivery]:
        if role == WAITS and not gate.openings:
            await until(lambda: gate.openings, PAUSED_S_MAX)
        return await take(self, most, mark)

    TurnLog.read_turn = paused_turn  # type: ignore[assignment]
    Delivery.take_entry = paused_take_entry  # type: ignore[method-assign]
    TurnLog.append = paused_append  # type: ignore[method-assign]
    TurnLog.publish_soon = paused_publish  # type: ignore[assignment,method-assign]
    Delivery.ack = paused_ack  # type: ignore[method-assign]
    Deliveries.next = waiting_next  # type: ignore[method-assign]
    if role == PAUSES:
        delta_buffer.JOINED_BYTES_MAX = 0
    for module in (attempt_runner, anthropic_api, large_events):
        module.LARGE_BYTES = LARGE_BYTES  # type: ignore[attr-defined]


def patch_gateway(gate: Gate, moment: str) -> None:
    """Patches the methods at which this gateway pauses."""
    append, add = TurnLog.append, Counters._add  # noqa: SLF001  # all increments

    async def paused_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, **options: Any) -> Chain:
        if moment == "reserved":
            await gate.pause(key.turn)
        chain = await append(self, key, chain, entry, **options)
        if moment == "stored":
            await gate.pause(key.turn)
        return chain

    async def paused_add(self: Counters, subject: str, headers: dict[str, str]) -> Any:
        added = await add(self, subject, headers)
        if moment == "counted" and subject.startswith("budgets.") and ".usd_" in subject and int(headers[INCREMENT]):
            await gate.pause(TurnId(subject))
        return added

    TurnLog.append = paused_append  # type: ignore[method-assign]
    Counters._add = paused_add  # type: ignore[method-assign]  # noqa: SLF001


def pause_of(request: Request) -> tuple[int, bool] | None:
    """Returns the number of the entry after which the turn pauses, and whether it pauses before the ack instead."""
    found = TAG.search(str(request.messages[-1].content)) if request.messages else None
    return (int(found[1]), bool(found[2])) if found else None


def pausable(module: str, folder: Path, **environ: object) -> ForkedProcess:
    """Returns a recorded process of `module` that can pause."""
    return ForkedProcess("tests.kills.paused_process", folder, str(folder / HISTORY), module, **environ)


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    gate = Gate()
    signal(SIGUSR1, gate.open)
    record(Recorder(Path(path), f"{module}-{os.getpid()}-{os.urandom(2).hex()}"))
    role = os.environ.get("KILLS_ROLE", "")
    if role in MOMENTS:
        patch_gateway(gate, role)
    else:
        patch(gate, role)
    sys.argv = [module, *arguments]
    runpy.run_module(f"tailrace.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
