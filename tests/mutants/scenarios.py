"""Short stories in which something breaks, each recorded to be judged. Real processes, real faults; judges nothing.

`python -m tests.mutants.scenarios NAME FOLDER` runs one in the tree that it stands in, which may be a mutant's. It ends
in bounded time whatever that tree does: what is wrong is the checker's to say.
"""

import asyncio
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import closing, suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import msgspec

from proto import entries, subjects
from proto.entries import Attempt, Entry, Event
from proto.fold import Turn
from proto.ids import Seq
from proto.log import streams
from proto.log.turns import FENCE, FENCE_SUBJECT
from proto.subjects import PERSISTENCE, STREAM, TurnKey
from tests.answering import stats
from tests.checker.client import Client
from tests.checker.history import Fault
from tests.checker.house import House, opened
from tests.frozen import freeze
from tests.handwritten import says
from tests.until import until
from tests.wire import Wire
from tests.writing import Writer

# In a sound tree everything here takes a second or two. A mutant may wait for what never comes.
ENOUGH_S = 12.0
LEASE_S = 1.0

Scenario = Callable[[Path], Coroutine[Any, Any, None]]


async def many_clients(folder: Path) -> None:
    """Four ask with one key at once; readers come and go at two gateways; one turn is cancelled twice."""
    async with opened(folder, gateways=2) as house:
        clients = [house.client(f"client {number}") for number in range(4)]
        keys = await asyncio.gather(*(client.ask("#sim words=80 rate=80 tag=m", key="one") for client in clients))
        first, *others = [(client, key) for client, key in zip(clients, keys, strict=True) if key is not None]
        await bounded(
            in_pieces(*first),
            *(client.read_on(key) for client, key in others),
            house.client("listener").read_text(first[1]),
        )
        stopped = await clients[0].ask("#sim words=900 rate=50 tag=n")
        assert stopped is not None
        await clients[0].read(stopped, most=5)
        await clients[0].cancel(stopped)
        await clients[1].cancel(stopped)
        await bounded(clients[2].read_on(stopped))
        await over(house)


async def zombie(folder: Path) -> None:
    """A generator is frozen for longer than its lease, and wakes up while another goes on with its turn."""
    async with opened(folder, generators=2, lease_s=LEASE_S) as house:
        key, reader = await asked(house, "#sim words=150 rate=40 tag=z")
        reading = asyncio.create_task(bounded(reader.read_on(key)))
        await told(house, key, chars=100)
        name, holder = await house.holder(key)
        with house.nemesis().recording(Fault(kind="freeze", target=name)) as freezing:
            freeze(holder)
            await within(lambda: is_taken_over(house, key))
            holder.signal(SIGCONT)
            freezing.ok()
        await reading
        await over(house)


async def killed(folder: Path) -> None:
    """kill -9 in the middle of a turn."""
    async with opened(folder, generators=2, lease_s=LEASE_S) as house:
        key, reader = await asked(house, "#sim words=100 rate=60 tag=k")
        reading = asyncio.create_task(bounded(reader.read_on(key)))
        await told(house, key, chars=100)
        name, holder = await house.holder(key)
        with house.nemesis().recording(Fault(kind="kill", target=name)) as killing:
            await holder.stop(SIGKILL)
            killing.ok()
        await reading
        await over(house)


async def lost_acknowledgement(folder: Path) -> None:
    """The server stores an entry, and its answer is lost on the way; nothing else is."""
    async with opened(folder, generators=0) as house, Wire(house.server.url) as wire, house.add_generator(wire.url):
        key, reader = await asked(house, "#sim words=150 rate=40 tag=l")
        reading = asyncio.create_task(bounded(reader.read_on(key)))
        await told(house, key, chars=100)
        with house.nemesis().recording(Fault(kind="lost acknowledgement", target="log")) as losing:
            wire.is_deaf = True
            await until(lambda: b'"seq":' in wire.lost)
            wire.mend()
            losing.ok()
        await reading
        await over(house)


async def fork(folder: Path) -> None:
    """The broker stores a rival of an entry, as a change of leader may; one reader is there, and one comes late."""
    async with opened(folder) as house:
        key, reader = await asked(house, "#sim words=120 rate=40 tag=f")
        reading = asyncio.create_task(bounded(reader.read_on(key)))
        turn = await told(house, key, chars=100)
        stored = await house.log.replay(key)
        # It names a predecessor that has long had a successor.
        rival = says(msgspec.structs.replace(turn.chain, last=stored[-3].seq), " RIVAL")
        with house.nemesis().recording(Fault(kind="fork", target="log")) as forking:
            await until(lambda: stored_behind(house, key, rival))
            forking.ok()
        await reading
        await bounded(house.client("late").read_on(key))
        # Three nodes may store what a single one never does.
        await over(house, nodes=3)


async def feed(folder: Path) -> None:
    """The live feed repeats an entry, and tells of one before its predecessor. The turn is written by hand."""
    async with opened(folder, generators=0) as house:
        key, reader = await asked(house, "#sim words=4 tag=e")
        reading = asyncio.create_task(bounded(reader.read_on(key)))
        writer = Writer(house.log, key)
        writer.chain = (await house.log.turn(key)).chain
        await writer.begin("e000000")
        await within(lambda: reader.seen == writer.chain.last)
        last, entry = writer.chain.last, says(writer.chain, " e000001")
        stored = (await house.log.replay(key, Seq(last - 1)))[0]
        assert isinstance(stored.entry, Event)
        await tell(house, key, stored.seq, stored.entry)
        # Nobody else writes: the next two are the next two of the stream.
        await tell(
            house, key, Seq(last + 2), says(msgspec.structs.replace(writer.chain, last=Seq(last + 1)), " e000002")
        )
        await house.connection.client.flush()
        assert await writer.store(entry) == last + 1
        await writer.say(" e000002", " e000003")
        await writer.end()
        await reading
        await over(house, 2)


async def locked(folder: Path) -> None:
    """The database is locked while a turn ends, and persistence is killed; then both come back."""
    async with opened(folder) as house:
        (config,) = [one for one in streams.consumers() if one.durable_name == PERSISTENCE]
        await house.connection.jetstream.add_consumer(STREAM, config.evolve(ack_wait=LEASE_S))
        key, reader = await asked(house, "#sim words=40 rate=40 tag=d")
        await told(house, key, chars=50)
        with house.nemesis().recording(Fault(kind="lock", target="database")) as locking:
            with closing(sqlite3.connect(house.database, isolation_level=None)) as other:
                other.execute("BEGIN EXCLUSIVE")
                await bounded(reader.read_on(key))
                await within(lambda: bool(house.persistence.said("turns wait in the log")), 4)
                await house.persistence.stop(SIGKILL)
                other.execute("ROLLBACK")
            await house.persistence.start()
            locking.ok()
        await over(house)


async def silence(folder: Path) -> None:
    """A turn is cancelled while its model has not said anything."""
    async with opened(folder) as house:
        key, asker = await asked(house, "#sim words=5 wait=30 tag=s")
        await within(lambda: has_open_calls(house, 1))
        await asker.cancel(key)
        await within(lambda: has_open_calls(house, 0), 4)
        await over(house, 2)


SCENARIOS: dict[str, Scenario] = {
    one.__name__: one for one in (many_clients, zombie, killed, lost_acknowledgement, fork, feed, locked, silence)
}


async def within(condition: Callable[[], Awaitable[bool] | bool], most_s: float = ENOUGH_S) -> None:
    """Waits for it, and goes on without."""
    with suppress(AssertionError):
        await until(condition, most_s)


async def bounded(*stories: Awaitable[object]) -> None:
    """Waits for all of them, and goes on without."""
    with suppress(TimeoutError):
        async with asyncio.timeout(ENOUGH_S):
            await asyncio.gather(*stories)


async def over(house: House, most_s: float = ENOUGH_S, *, nodes: int = 1) -> None:
    """Once everything has settled, or will not; what there is then is collected."""
    with suppress(AssertionError):
        await house.settled(most_s)
    await house.collect(nodes=nodes)


async def asked(house: House, question: str) -> tuple[TurnKey, Client]:
    client = house.client("client")
    key = await client.ask(question)
    assert key is not None
    return key, client


async def in_pieces(client: Client, key: TurnKey) -> None:
    """Goes away after every tenth frame, and comes back."""
    read = await client.read(key, most=10)
    while read.over == "left" and read.frames:
        await client.look(key)
        read = await client.read(key, read.frames[-1].seq, most=10)


async def told(house: House, key: TurnKey, chars: int) -> Turn:
    """The turn, once so much of it is told."""

    async def is_told() -> Turn | None:
        turn = await house.log.turn(key)
        return turn if len(turn.text) >= chars else None

    turn = await until(is_told)
    assert turn is not None
    return turn


async def is_taken_over(house: House, key: TurnKey) -> bool:
    """Whether a second generator has said something."""
    stored = [one.entry for one in await house.log.replay(key, limit=4096)]
    attempts = [n for n, entry in enumerate(stored) if isinstance(entry, Attempt)]
    return len(attempts) > 1 and len(stored) > attempts[1] + 4


async def has_open_calls(house: House, count: int) -> bool:
    return (await stats(house.claude_url))["streams_open"] == count


async def stored_behind(house: House, key: TurnKey, rival: Entry) -> bool:
    """Whether the server has let it in: its writer is as quick as the generator now and then."""
    tail = (await house.log.turn(key)).tail
    headers = {FENCE: str(tail), FENCE_SUBJECT: subjects.entries(key)}
    subject, payload = subjects.entry(key, "event"), entries.encode(rival)
    reply = await house.connection.request(subject, payload, timeout_s=2, headers=headers)
    return b'"error"' not in reply.data


async def tell(house: House, key: TurnKey, seq: Seq, entry: Event) -> None:
    """Has the live feed tell of an entry."""
    headers = {
        "Nats-Sequence": str(seq),
        "Nats-Subject": subjects.entry(key, "event"),
        "Nats-Time-Stamp": "2026-01-01T12:00:00Z",
    }
    live = f"live.{key.tenant}.{key.turn}.event"
    await house.connection.client.publish(live, entries.encode(entry), headers=headers)


if __name__ == "__main__":
    asyncio.run(SCENARIOS[sys.argv[1]](Path(sys.argv[2])))
