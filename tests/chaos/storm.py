"""The whole system as processes, generators being killed, readers being cut; what was seen of it. Judges nothing.

Who is killed and who is cut is drawn from the seed; what they are at just then is the machine's own affair.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import pairwise
from pathlib import Path
from signal import SIGKILL
from time import monotonic
from typing import NamedTuple

import httpx2
import msgspec

from deploy.nats_server import NatsServer
from gateway.door.auth import LOCAL
from proto.entries import Attempt, Stored
from proto.errors import Refused
from proto.fold import fold
from proto.ids import Seq, TurnId
from proto.log import Connection, Services, TurnLog, streams
from proto.records import AskTurn, TurnRecord
from proto.subjects import TurnKey
from tests import processes, reading
from tests.answering import shorten_lease, stats
from tests.chaos.question import Question, question
from tests.chaos.reader import CutReader
from tests.processes import Process
from tests.promises import History

# Generators die faster here than anywhere else: a turn may need many of them, and none is to be given up.
ATTEMPTS_MAX = 100
LOG_BYTES_MAX = 512 * 1024**2
QUERY_TIMEOUT_S = 10.0


class Storm(msgspec.Struct, frozen=True, kw_only=True):
    """What is to happen. It lasts until the last turn has ended."""

    seed: int
    turns: int = 1000
    at_once: int = 40
    generators: int = 3
    gateways: int = 2
    seconds_between_kills: float = 1.0
    cut_after_s: float = 1.5
    """How long a reader's connection lives on the average."""
    lease_s: float = streams.GENERATOR_ACK_WAIT_S
    seconds_max: float = 1200.0


class Turn(NamedTuple):
    """One turn of a storm: what was asked, who read it, and what was seen of it at the end."""

    key: TurnKey
    question: Question
    readers: list[CutReader]


class Wait(NamedTuple):
    """What a reader waited for its next delta, and how many generators had lost the turn meanwhile."""

    s: float
    deaths: int


class Seen(msgspec.Struct, kw_only=True):
    """What happened."""

    histories: list[History] = []
    """One a turn."""
    killed: list[str] = []
    """Generators, by the unique names that their lives had."""
    superseded: set[str] = set()
    """Generators whose turn another had to go on with."""
    connections: int = 0
    cuts: int = 0
    entries: int = 0
    skipped: int = 0
    attempts: int = 0
    calls: int = 0
    mismatches: int = 0
    """Continuations that began with something which the model had not said."""
    wrong: list[TurnId] = []
    """Turns whose text is not the one that was asked for, or whose API tells another story than the log."""
    waits: list[Wait] = []
    alarms: Counter[str] = msgspec.field(default_factory=Counter)
    """Lines of any process that say that somebody should look, by what they say."""
    took_s: float = 0.0

    @property
    def hits(self) -> int:
        """Kills that hit a running turn."""
        return len(self.superseded.intersection(self.killed))


class System(NamedTuple):
    connection: Connection
    claude_url: str
    processes: list[Process]
    generators: list[Process]
    clients: list[httpx2.AsyncClient]
    """One a gateway."""


async def rage(storm: Storm, folder: Path) -> Seen:
    """Starts everything in `folder`, lets the storm rage, says what was seen, and ends every process it started."""
    chance = random.Random(storm.seed)
    seen = Seen()
    async with started(storm, folder) as system:
        turns: list[Turn] = []
        began = monotonic()
        killing = asyncio.create_task(kill(system.generators, storm.seconds_between_kills, chance, seen.killed))
        try:
            # Turns that have not ended by then have broken a promise, and it will be said which.
            with suppress(TimeoutError):
                async with asyncio.timeout(storm.seconds_max):
                    await ask_all(storm, system.clients, chance, turns)
        finally:
            killing.cancel()
            await asyncio.wait([killing])
        seen.took_s = monotonic() - began
        for turn in turns:
            await look(system, turn, seen)
        seen.alarms.update(fact["event"] for one in system.processes for fact in one.facts if fact["level"] == "error")
        counted = await stats(system.claude_url)
        seen.calls, seen.mismatches = counted["calls"], counted["continuations_mismatched"]
    return seen


@asynccontextmanager
async def started(storm: Storm, folder: Path) -> AsyncIterator[System]:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(NatsServer(folder, sync="always"))
        connection = await Connection.open(server.url, "chaos")
        stack.push_async_callback(connection.close)
        await streams.apply(connection, bytes_max=LOG_BYTES_MAX)
        await shorten_lease(connection, storm.lease_s)
        claude = await stack.enter_async_context(processes.simulated_claude(folder))
        generators = [
            processes.generator(
                folder, server.url, claude.url, TAILRACE_GENERATOR=f"g{n}", TAILRACE_ATTEMPTS_MAX=ATTEMPTS_MAX
            )
            for n in range(storm.generators)
        ]
        gateways = [processes.gateway(folder, server.url) for _ in range(storm.gateways)]
        every = [*generators, *gateways, processes.persistence(folder, server.url)]
        for process in every:
            await stack.enter_async_context(process)
        limits = httpx2.Limits(max_connections=None)
        clients = [
            httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False, limits=limits) for gateway in gateways
        ]
        for client in clients:
            await stack.enter_async_context(client)
        yield System(connection, claude.url, every, generators, clients)


async def kill(generators: list[Process], every_s: float, chance: random.Random, killed: list[str]) -> None:
    """Kills one of the generators that are up every `every_s` seconds or so, and has it started again."""
    up = list(generators)

    async def start_again(generator: Process) -> None:
        await generator.stop(SIGKILL)
        await generator.start()
        up.append(generator)

    async with asyncio.TaskGroup() as group:
        while True:
            # Not by the clock: kills in step with the lease hit, again and again, whoever has just been given the turn.
            await asyncio.sleep(every_s * chance.uniform(0.5, 1.5))
            if up:
                generator = up.pop(chance.randrange(len(up)))
                killed.append(generator.said("ready")[-1]["generator"])
                group.create_task(start_again(generator))


async def ask_all(storm: Storm, clients: list[httpx2.AsyncClient], chance: random.Random, turns: list[Turn]) -> None:
    """Posts turns and reads each to its end, `at_once` at a time."""
    slots = asyncio.Semaphore(storm.at_once)

    async def read(turn: Turn) -> None:
        await asyncio.gather(*(reader.read(storm.cut_after_s) for reader in turn.readers))
        slots.release()

    async with asyncio.TaskGroup() as group:
        for number in range(storm.turns):
            await slots.acquire()
            asked = question(number, chance)
            key = await post(chance.choice(clients), asked)
            readers = [
                CutReader(f"reader {n} of turn {number}", key, clients, chance) for n in range(chance.choice((1, 1, 2)))
            ]
            turns.append(Turn(key, asked, readers))
            group.create_task(read(turns[-1]))


async def post(client: httpx2.AsyncClient, asked: Question) -> TurnKey:
    response = await client.post("/v1/turns", json=asked.body)
    assert response.status_code == 202, response.text
    return TurnKey(LOCAL.tenant, TurnId(response.json()["turn"]))


async def look(system: System, turn: Turn, seen: Seen) -> None:
    """Adds what there is of a turn: in the log, in SQLite, in the API, and with its readers."""
    log = TurnLog(system.connection)
    readers = [reader.reader() for reader in turn.readers]
    history = await reading.history(log, turn.key, *readers, records=await records(system.connection, turn.key))
    stored = history.log[turn.key]
    folded = fold(stored)
    api = await system.clients[0].get(f"/v1/turns/{turn.key.turn}")
    if (folded.text, folded.outcome) != (turn.question.text, "completed") or api.json()["text"] != folded.text:
        seen.wrong.append(turn.key.turn)
    seen.histories.append(history)
    seen.connections += sum(len(reader.connections) for reader in readers)
    seen.cuts += sum(connected.over == "cut" for reader in readers for connected in reader.connections)
    seen.entries += len(stored)
    seen.skipped += folded.skipped
    seen.attempts += folded.attempt
    losers, taken = losses(stored)
    seen.superseded |= losers
    seen.waits += [wait for reader in turn.readers for wait in waits(reader, taken)]


async def records(connection: Connection, key: TurnKey) -> dict[TurnKey, TurnRecord]:
    """The row of a turn, from persistence itself: a gateway would look into the log first."""
    question = msgspec.json.encode(AskTurn(key.turn))
    try:
        answer = await Services(connection).ask(key.tenant, "turn", question, timeout_s=QUERY_TIMEOUT_S)
    except Refused:
        return {}
    return {key: msgspec.json.decode(answer, type=TurnRecord)}


def losses(stored: tuple[Stored, ...]) -> tuple[set[str], list[Seq]]:
    """Who lost the turn, and where others went on with it."""
    attempts = [(one.seq, one.entry.generator) for one in stored if isinstance(one.entry, Attempt)]
    lost = [(before, seq) for (_, before), (seq, after) in pairwise(attempts) if before != after]
    return {generator for generator, _ in lost}, [seq for _, seq in lost]


def waits(reader: CutReader, taken: list[Seq]) -> Iterator[Wait]:
    for last, first in pairwise(reader.arrivals):
        if deaths := sum(last.seq < seq < first.seq for seq in taken):
            yield Wait(first.at - last.at, deaths)
