"""Generators that are killed one after the other while stock AG-UI clients read their answers.

    python -m tests.kills.ag_ui --kills 200

The clients are HttpAgent 1.0.0 and 0.0.59, which never reconnect, and TanStack AI's ChatClient, whose connections break
at random. Each has a text, an answer with thinking, and one that starts again (`on_interrupt: restart`), and asks until
all kills have happened. A kill hits a generator with a running turn. The promises about turns judge the bytes that each
client has received and the text that it shows: over all its connections, they are those of a reader without
interruptions.
"""

import argparse
import asyncio
import itertools
import json
import re
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from signal import SIGKILL
from typing import Any

import msgspec

from tailrace.gateway.streaming.dialect import SOME_EVENTS
from tailrace.proto.entries import Attempt
from tailrace.proto.ids import BEFORE_FIRST, LOCAL, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.usage import Usage
from tailrace.protocols.ag_ui.stream import make_dialect
from tests.checker.recorded_system import RecordedSystem
from tests.checker.run import Run, load
from tests.clients import node
from tests.harness.readers import frames, render_frames
from tests.harness.sse_parser import EventStream, SseEvent
from tests.harness.until import until
from tests.promises import Reader, ReaderConnection, Story, judge

CLIENTS = ("1.0.0", "0.0.59", "tanstack")
QUESTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("#sim words=60 rate=20", {}),
    ("#sim words=40 thinking=20 rate=20", {}),
    ("#sim words=40 thinking=10 rate=20", {"on_interrupt": "restart"}),
)
GENERATORS = 3
# Between two kills, on average: a generator starts again in the meantime.
KILL_EVERY_S = 1.0
ENDED_S_MAX = 120.0
EVENT_ID = re.compile(rb"^id: (\S+)$", re.MULTILINE)


class Connection(msgspec.Struct, frozen=True):
    """A connection of a client: the id after which it resumed, and the bytes that it has received."""

    cursor: str | None
    received: str


class ClientRun(msgspec.Struct, frozen=True):
    """A run of a stock client."""

    client: str
    turn: TurnId
    messages: list[dict[str, Any]]
    """The messages of its request."""
    connections: list[Connection]
    text: str
    """The text that it shows."""
    error: str | None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of the kills and of the runs."""

    kills: int
    hits: int
    """Kills of a generator whose turn was taken over. In the others, the turn ended right before."""
    runs: dict[str, int]
    """The runs by client."""
    takeovers: int
    """Attempts after the first one of each turn."""
    resumed: int
    """Connections after the first one of each run."""
    wrong: list[str]
    """A line for each run that breaks a promise."""

    @property
    def is_green(self) -> bool:
        return self.hits > 0 and set(self.runs) == set(CLIENTS) and not self.wrong

    def report(self) -> str:
        """Describes the result."""
        counts = (
            f"{self.kills} kills, {self.hits} in a running turn, {self.takeovers} takeovers; "
            f"{sum(self.runs.values())} runs: {self.runs}, {self.resumed} connections resumed; "
            f"{len(self.wrong)} runs break a promise"
        )
        return "\n".join([counts, *self.wrong])


async def measure(folder: Path, kills: int, *, seed: int) -> Result:
    """Runs the clients in a system of its own until so many generators were killed, and judges each run."""
    async with RecordedSystem(folder) as system:
        await system.start(generators=GENERATORS)
        running: set[str] = set()
        async with _clients(f"http://127.0.0.1:{system.clients[0].base_url.port}", seed) as process:
            reading = asyncio.create_task(_read_runs(process, running))
            killed = await _kill_at_random(system, running, kills, Random(seed))
            assert process.stdin is not None
            process.stdin.close()
            runs = await asyncio.wait_for(reading, ENDED_S_MAX)
        await system.wait_until_settled()
        await system.collect()
    return _judge(load(folder), runs, killed)


@asynccontextmanager
async def _clients(url: str, seed: int) -> AsyncIterator[Process]:
    given = json.dumps([(client, *question) for client in CLIENTS for question in QUESTIONS])
    process = await asyncio.create_subprocess_exec(
        node.NODE,
        node.SCRIPTS / "agui-runs.mjs",
        url,
        str(seed),
        given,
        stdin=PIPE,
        stdout=PIPE,
        stderr=None,
        limit=2**24,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _read_runs(process: Process, running: set[str]) -> list[ClientRun]:
    """Reads what the clients print until they end. Keeps the turns that run in `running`."""
    assert process.stdout is not None
    runs: list[ClientRun] = []
    async for line in process.stdout:
        if line.startswith(b'{"turn"'):
            running.add(msgspec.json.decode(line)["turn"])
        else:
            runs.append(msgspec.json.decode(line, type=ClientRun))
            running.discard(runs[-1].turn)
    assert await process.wait() == 0
    return runs


async def _kill_at_random(system: RecordedSystem, running: set[str], kills: int, chance: Random) -> list[str]:
    """Kills so many generators, each with a running turn, and starts them again at once. Returns their names."""
    killed: list[str] = []
    while len(killed) < kills:
        await asyncio.sleep(2 * KILL_EVERY_S * chance.random())
        await until(lambda: running, ENDED_S_MAX)
        key = TurnKey(LOCAL, TurnId(chance.choice(sorted(running))))
        if not await _is_writing(system, key):
            continue
        name, victim = await system.generator_of(key)
        if name in killed:
            # The turn waits for its takeover, and the generator has started again.
            continue
        await victim.stop(SIGKILL)
        await victim.start()
        killed.append(name)
        if len(killed) % 20 == 0:
            print(f"{len(killed)} kills", flush=True)
    return killed


async def _is_writing(system: RecordedSystem, key: TurnKey) -> bool:
    """Returns whether the last attempt of a turn has stored an event. A turn fails after five in a row without one."""
    turn = await system.log.read_turn(ScopedKey.whole(key))
    return turn.end is None and turn.attempt > 0 and turn.fruitless == 0


def _judge(found: Run, runs: Sequence[ClientRun], killed: Sequence[str]) -> Result:
    wrong = []
    counts: dict[str, int] = {}
    for run in runs:
        counts[run.client] = counts.get(run.client, 0) + 1
        key = TurnKey(LOCAL, run.turn)
        try:
            if problem := _problem(found, key, run):
                wrong.append(f"{run.client} {run.turn}: {problem}")
        except AssertionError as error:
            wrong.append(f"{run.client} {run.turn}: {error}")
    attempts = [[one.entry for one in turn.valid if isinstance(one.entry, Attempt)] for turn in found.turns.values()]
    taken_over = [attempt.generator for of_turn in attempts for attempt in of_turn[:-1]]
    if len(found.turns) != len(runs):
        wrong.append(f"{len(found.turns)} turns for {len(runs)} runs")
    return Result(
        kills=len(killed),
        hits=len(set(killed) & set(taken_over)),
        runs=counts,
        takeovers=len(taken_over),
        resumed=sum(len(run.connections) - 1 for run in runs),
        wrong=wrong,
    )


def _problem(found: Run, key: TurnKey, run: ClientRun) -> str:
    """Returns the first promise that a run breaks, or an empty text."""
    if run.error is not None:
        return run.error
    own = msgspec.json.encode(run.messages)
    dialect = make_dialect(is_1=run.client == "1.0.0", own=own)
    sent = received_events(run.connections)
    decoded = [json.loads(one.data) for one in sent]
    ended = next((one["value"] for one in decoded if one.get("name") == "tailrace.end"), None)
    if ended is None:
        return "it has not received `tailrace.end`"
    reader = Reader(
        name=run.client,
        key=key,
        dialect=run.client,
        connections=(ReaderConnection(BEFORE_FIRST, tuple(frames(sent)), "ended"),),
        received=Story(run.text, msgspec.convert(ended["usage"], Usage), ended["outcome"]),
    )
    history = found.history(key)
    rendered = {(key, run.client): render_frames(key, found.turns[key].stored, dialect)}
    verdict = judge(msgspec.structs.replace(history, readers=(reader,), rendered=rendered))
    return "" if verdict.is_green else verdict.evidence


def received_events(connections: Sequence[Connection]) -> list[SseEvent]:
    """Returns the events that a client has received over all its connections: of each, those up to its next cursor.

    A client that has lost its connection behind the last event gets this event again, with an id of its own.
    """
    found: list[SseEvent] = []
    for one, following in itertools.zip_longest(connections, connections[1:]):
        stream = EventStream()
        events = stream.feed(one.received.encode())
        cursor = following.cursor.encode() if following is not None and following.cursor else None
        if cursor is not None and b"id: %s\n" % cursor in stream.rest:
            # The client takes a line without the empty line behind it.
            events += stream.feed(b"\n")
        if following is not None:
            ids = [_id(event) for event in events]
            if cursor in ids:
                events = events[: ids.index(cursor) + 1]
            else:
                # It has not received an event of this connection.
                assert cursor == (one.cursor and one.cursor.encode()), (
                    f"resumed after {cursor!r}, which it does not have"
                )
                events = []
        found += [event for event in events if not _is_again(_id(event))]
    return found


def _id(event: SseEvent) -> bytes | None:
    named = EVENT_ID.search(event.raw)
    return named[1] if named else None


def _is_again(name: bytes | None) -> bool:
    _, _, part = (name or b"").partition(b"-")
    return bool(part) and int(part) >= SOME_EVENTS


def main() -> int:
    """Prints the result. Returns the exit status: 0 if each run keeps the promises."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.kills.ag_ui", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200, help="default: 200")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = asyncio.run(measure(Path(folder), given.kills, seed=given.seed))
    print(f"{result.report()}\n{time.monotonic() - began:.0f} s")
    return 0 if result.is_green else 1


if __name__ == "__main__":
    sys.exit(main())
