"""Many readers reconnect at once: `python -m benchmarks.storm --readers 10000 --seconds 5`. One gateway process.

Readers of a hundred running turns connect within a few seconds, each with the cursor of some entry, as after a gateway
is lost. A reader that gets a 503 waits for its Retry-After. A reader has caught up when it has the last entry of its
turn. Meanwhile other readers follow a turn that is being written; their delays are measured.
"""

import asyncio
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from benchmarks.command_line import count, new_parser
from benchmarks.latencies import describe_latencies
from benchmarks.log_server import running_log
from benchmarks.process_usage import cpu_s, raise_file_limit, resident_bytes
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.harness import processes
from tests.harness.readers import read_all_entries, render_frames
from tests.harness.turn_writer import Writer
from tests.harness.until import until

ID = re.compile(rb"\nid: (\d+)\n\n")
STATUS = re.compile(rb"HTTP/1.1 (\d+) ")
RETRY_AFTER = re.compile(rb"\r\nretry-after: (\d+)\r\n")
TURNS = 100
# So many are written at once, so that their entries lie between one another's.
TOGETHER = 10
ENTRIES = 60
OTHERS = 20
WRITTEN_EVERY_S = 0.02


class StormMeasurements(msgspec.Struct, kw_only=True):
    """The measurements of a storm. Times are in seconds."""

    caught_up: list[float] = []
    """Of each reader, from its first try until it had its turn's last entry."""
    took_s: float = 0.0
    """Until the last one had."""
    statuses: Counter[int] = msgspec.field(default_factory=Counter)
    wrong: list[str] = []
    """Readers that got something else than every entry after their cursor, once, in order."""
    broken: int = 0
    """Connections that ended without a status, or before their reader had caught up."""
    cpu_s: float = 0.0
    """What it took the gateway."""
    bytes_before: int = 0
    bytes_after: int = 0
    calm: list[float] = []
    late: list[float] = []
    """How long others waited for an entry after it was stored, before the storm and while it lasted."""


class Reader(asyncio.Protocol):
    """One connection: the status, and the ids of the events that came.

    Not tailrace.AsyncClient: readers share the machine with the gateway, and must cost less than it does.
    """

    def __init__(self, path: str, cursor: Seq, last: Seq) -> None:
        self._asking = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {cursor}\r\n\r\n".encode()
        self._last = last
        self._rest = b""
        self.ids: list[int] = []
        self.status = 0
        self.again_s = 0.0
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether it has caught up."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.write(self._asking)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._rest += data
        if not self.status:
            if b"\r\n\r\n" not in self._rest:
                return
            self.status = int(STATUS.match(self._rest)[1])  # type: ignore[index]
            if self.status != 200:
                again = RETRY_AFTER.search(self._rest)
                self.again_s = float(again[1]) if again else 0.0
                self._end(is_caught_up=False)
                self.transport.close()
                return
        found = [int(one) for one in ID.findall(self._rest)]
        if found:
            self.ids += found
            self._rest = self._rest[self._rest.rindex(b"\n\n") :]
            if self.ids[-1] >= self._last:
                self._end(is_caught_up=True)

    def connection_lost(self, _: Exception | None) -> None:
        self._end(is_caught_up=False)

    def _end(self, *, is_caught_up: bool) -> None:
        if not self.done.done():
            self.done.set_result(is_caught_up)


async def storm(readers: int, over_s: float, seed: int, folder: Path, **environ: object) -> StormMeasurements:
    """Everything in `folder`, and `readers` that come back within `over_s` seconds. Ends all processes that it has
    started."""
    seen, chance = StormMeasurements(), random.Random(seed)
    async with AsyncExitStack() as stack:
        server, connection = await stack.enter_async_context(running_log(folder))
        log = TurnLog(connection)
        turns = [
            turn
            for _ in range(0, TURNS, TOGETHER)
            for turn in await asyncio.gather(*(create_running_turn(log) for _ in range(TOGETHER)))
        ]
        room = {f"TAILRACE_STREAMS_{name}": readers + OTHERS for name in ("MAX", "TENANT_MAX", "ADDRESS_MAX")}
        gateway = await stack.enter_async_context(processes.gateway(folder, server.url, **room | environ))
        port = int(gateway.url.rpartition(":")[2])
        group = await stack.enter_async_context(asyncio.TaskGroup())
        others = Others(log, port)
        watching = group.create_task(others.watch())
        await until(lambda: others.received_count > 100 * OTHERS, 60)
        calm = others.received_count
        seen.calm = others.late(calm // 2)
        seen.bytes_before, before_s = resident_bytes(gateway.pid), cpu_s(gateway.pid)
        began = time.perf_counter()
        open_: list[Reader] = []
        async with asyncio.TaskGroup() as coming:
            for _ in range(readers):
                coming.create_task(come_back(port, chance.choice(turns), chance, over_s, seen, open_))
        seen.took_s = time.perf_counter() - began
        seen.late = others.late(calm)
        seen.bytes_after, seen.cpu_s = resident_bytes(gateway.pid), cpu_s(gateway.pid) - before_s
        watching.cancel()
        for reader in open_:
            reader.transport.close()
    return seen


async def come_back(
    port: int,
    turn: "Running",
    chance: random.Random,
    over_s: float,
    seen: StormMeasurements,
    open_: list[Reader],
) -> None:
    """One reader: comes at some moment, and again until it is let in and has caught up."""
    loop = asyncio.get_running_loop()
    cursor = chance.choice(turn.seqs[:-1])
    wanted = [seq for seq in turn.shown if seq > cursor]
    await asyncio.sleep(chance.uniform(0, over_s))
    began = time.perf_counter()
    while True:
        try:
            _, reader = await loop.create_connection(
                lambda: Reader(f"/v1/turns/{turn.key.turn}/events", cursor, wanted[-1]),
                "127.0.0.1",
                port,
            )
        except OSError:
            seen.broken += 1
            await asyncio.sleep(chance.uniform(0.5, 1.5))
            continue
        is_caught_up = await reader.done
        seen.statuses[reader.status] += 1
        if is_caught_up:
            break
        if reader.status == 200 or not reader.status:
            seen.broken += 1
        await asyncio.sleep(reader.again_s + chance.uniform(0, 1))
    seen.caught_up.append(time.perf_counter() - began)
    if reader.ids != wanted:
        seen.wrong.append(f"{turn.key.turn} after {cursor}: {reader.ids[:3]}…, and not {wanted[:3]}…")
    open_.append(reader)


class Running(NamedTuple):
    """A turn that has not ended: its entries, and those that a reader is shown."""

    key: TurnKey
    seqs: list[Seq]
    shown: list[Seq]


async def create_running_turn(log: TurnLog) -> Running:
    key = TurnKey(LOCAL.access.tenant, TurnId(new_id()))
    writer = Writer(log, key)
    await writer.open()
    await writer.store_texts(*(f"word {n} " for n in range(ENTRIES)))
    stored = await read_all_entries(log, key)
    return Running(key, [one.seq for one in stored], [frame.seq for frame in render_frames(key, stored)])


class Others:
    """Readers of a turn that is being written all the time, and how late each gets each entry."""

    def __init__(self, log: TurnLog, port: int, past: Sequence[str] = ()) -> None:
        """`past`: the texts that the turn has stored before the readers connect."""
        self.key = TurnKey(LOCAL.access.tenant, TurnId(new_id()))
        self._writer = Writer(log, self.key)
        self._port = port
        self._past = past
        self._stored_at: dict[int, float] = {}
        self._arrived: list[tuple[int, float]] = []

    async def watch(self) -> None:
        """Goes on until it is cancelled."""
        await self._writer.open(*self._past)
        arrived = self._arrived

        class Other(Reader):
            def data_received(self, data: bytes) -> None:
                known = len(self.ids)
                super().data_received(data)
                arrived.extend((one, time.perf_counter()) for one in self.ids[known:])

        loop, path = asyncio.get_running_loop(), f"/v1/turns/{self.key.turn}/events"
        others = [
            (await loop.create_connection(lambda: Other(path, BEFORE_FIRST, Seq(2**62)), "127.0.0.1", self._port))[0]
            for _ in range(OTHERS)
        ]
        try:
            while True:
                before = time.perf_counter()
                await self._writer.store_texts("word ")
                self._stored_at[self._writer.chain.last] = before
                await asyncio.sleep(WRITTEN_EVERY_S)
        finally:
            for other in others:
                other.close()

    @property
    def last(self) -> Seq:
        """The entry that was stored last."""
        return self._writer.chain.last

    @property
    def received_count(self) -> int:
        """The number of entries that all readers together have received."""
        return len(self._arrived)

    def late(self, known: int = 0) -> list[float]:
        """Returns the delays in seconds of the entries that readers received, without the first `known`, in order.

        A delay is the time from the append of an entry until a reader has it.
        """
        return [at - self._stored_at[one] for one, at in self._arrived[known:] if one in self._stored_at]


async def main() -> int:
    parser = new_parser(__doc__)
    parser.add_argument("--readers", type=count, default=10_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="within which they come")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    raise_file_limit()
    with tempfile.TemporaryDirectory() as folder:
        seen = await storm(options.readers, options.seconds, options.seed, Path(folder))
    print(
        f"{options.readers} readers within {options.seconds:.0f} s; status {dict(seen.statuses)}, broken {seen.broken}"
    )
    print(
        f"all caught up after {seen.took_s:.1f} s; each: {describe_latencies(seen.caught_up)}; wrong: {len(seen.wrong)}"
    )
    print(f"others wait, before: {describe_latencies(seen.calm)}; meanwhile: {describe_latencies(seen.late)}")
    each = (seen.bytes_after - seen.bytes_before) / options.readers / 1000
    print(f"gateway: {seen.cpu_s:.1f} s at work, {seen.bytes_after / 1e6:.0f} MB, {each:.0f} kB for each reader")
    print(*seen.wrong[:10], sep="\n", end="\n" if seen.wrong else "")
    return 1 if seen.wrong else 0


if __name__ == "__main__":
    sys.exit(uvloop.run(main()))
