"""A part of the system that stops where it is told to, so that it is killed there: `python -m tests.kills.held …`.

As `tests.checker.recorded`, and recorded in the same way. A generator that holds stores each delta as an entry of its
own, and waits once the entry is stored that the question names (`tag=h7-…`: the turn's seventh); `h7e` is before it
acknowledges. SIGUSR1 lets go of all that are held; one that waits takes nothing from the queue before that.
"""

import os
import re
import runpy
import sys
from pathlib import Path
from signal import SIGUSR1, signal

import structlog

from tailrace.generators import delta_buffer
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Request
from tailrace.proto.fold import EMPTY_TURN, Turn
from tailrace.proto.nats import Deliveries, Delivery, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.checker.history import HISTORY, Recorder
from tests.checker.recorded import record
from tests.harness.processes import Process
from tests.harness.until import until

PLACE = re.compile(r"\btag=h([0-9]+)(e?)-")
# What a process does that has no part of its own in this is what it always does.
HOLDS, WAITS = "holds", "waits"
HELD_S_MAX = 90.0

logger = structlog.get_logger()


class Gate:
    """Where a process stops. It opens for all who stand there, and shuts behind them."""

    def __init__(self) -> None:
        self.openings = 0

    def open(self, *_: object) -> None:
        self.openings += 1

    async def hold(self, **what: object) -> None:
        seen = self.openings
        logger.info("held", **what)
        await until(lambda: self.openings > seen, HELD_S_MAX)


def hold(gate: Gate, role: str) -> None:
    """Wraps the doors of this process, behind which it can be held."""
    turn, append, done, take = TurnLog.turn, TurnLog.append, Delivery.ack, Deliveries.next
    left: dict[TurnKey, int] = {}
    unacknowledged: set[TurnKey] = set()

    async def held_turn(self: TurnLog, key: TurnKey, known: Turn = EMPTY_TURN) -> Turn:
        found = await turn(self, key, known)
        place = place_of(found.request) if found.request and not found.attempt and role == HOLDS else None
        if place is not None and key not in left:
            entries, is_end = place
            left[key] = -1 if is_end else entries - 1
            if is_end:
                unacknowledged.add(key)
            if not left[key]:
                await gate.hold(turn=key.turn)
        return found

    async def held_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float = 10) -> Chain:
        chain = await append(self, key, chain, entry, timeout_s=timeout_s)
        if key in left:
            left[key] -= 1
            if not left[key]:
                await gate.hold(turn=key.turn)
        return chain

    async def held_done(self: Delivery) -> None:
        if self.key in unacknowledged:
            unacknowledged.discard(self.key)
            await gate.hold(turn=self.key.turn)
        await done(self)

    async def held_next(self: Deliveries, most: int = 1) -> list[Delivery]:
        if role == WAITS and not gate.openings:
            await until(lambda: gate.openings, HELD_S_MAX)
        return await take(self, most)

    # As a patch, for the part is not to know.
    TurnLog.turn = held_turn  # type: ignore[method-assign]
    TurnLog.append = held_append  # type: ignore[method-assign]
    Delivery.ack = held_done  # type: ignore[method-assign]
    Deliveries.next = held_next  # type: ignore[method-assign]
    if role == HOLDS:
        delta_buffer.JOINED_BYTES_MAX = 0


def place_of(request: Request) -> tuple[int, bool] | None:
    """After which entry the question wants its turn to be held, and whether that is before it is acknowledged."""
    found = PLACE.search(str(request.messages[-1].content)) if request.messages else None
    return (int(found[1]), bool(found[2])) if found else None


def held(module: str, folder: Path, **environ: object) -> Process:
    """`module` as a process that writes its operations into the history in `folder`, and can be held."""
    return Process("tests.kills.held", folder, str(folder / HISTORY), module, **environ)


def main() -> None:
    path, module, *arguments = sys.argv[1:]
    gate = Gate()
    signal(SIGUSR1, gate.open)
    record(Recorder(Path(path), f"{module}-{os.getpid()}-{os.urandom(2).hex()}"))
    hold(gate, os.environ.get("KILLS_ROLE", ""))
    sys.argv = [module, *arguments]
    runpy.run_module(f"tailrace.{module}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
