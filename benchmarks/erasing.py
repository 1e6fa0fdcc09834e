"""Erasure of log entries, and what requests to JetStream wait for meanwhile: `python -m benchmarks.erasing`.

nats-server rewrites a whole block of the log for each erased entry, so the rate depends on the size of the block.
"""

import asyncio
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from benchmarks.command_line import count, new_parser
from benchmarks.log_server import running_log
from tailrace.proto import entry_encryption
from tailrace.proto.chain import START
from tailrace.proto.entries import Message, Request
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.subjects import STREAM, entry

STORED_AT_ONCE = 200


async def store(connection: Connection, key: TurnKey, entries: int, entry_bytes: int) -> None:
    """Stores entries without a meaning."""
    slots = asyncio.Semaphore(STORED_AT_ONCE)

    async def store_one() -> None:
        async with slots:
            await connection.request(entry(key, "event"), b"x" * entry_bytes, timeout_s=30)

    await asyncio.gather(*(store_one() for _ in range(entries)))


async def store_encrypted(connection: Connection, key: TurnKey, count: int, entry_bytes: int) -> None:
    """Stores a turn with `store: false`: a request, and encrypted entries without a meaning."""
    encryption_key = entry_encryption.new_key()
    request = Request(
        model="claude-sonnet-5-5",
        max_tokens=64,
        messages=[Message("user", "x" * entry_bytes)],
        session=SessionId("bench"),
        store=False,
        encryption_key=encryption_key,
    )
    await TurnLog(connection).append(key, START, request)
    subject = entry(key, "event")
    for _ in range(count):
        payload = entry_encryption.encrypt(encryption_key, subject, b"x" * entry_bytes)
        await connection.request(subject, payload, timeout_s=30)


async def measure_waits(connection: Connection, subject: str, data: bytes, waits_s: list[float]) -> None:
    """Sends a request every 20 ms, and adds how long each waits, until it is cancelled."""
    while True:
        began = time.monotonic()
        await connection.request(subject, data, timeout_s=60)
        waits_s.append(time.monotonic() - began)
        await asyncio.sleep(0.02)


async def main(block_mb: float, entry_bytes: int, erased: int, turns: int) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nats, connection = await stack.enter_async_context(running_log(folder, sync="always"))
        other = await Connection.open(nats.url, "asks")
        stack.push_async_callback(other.close)
        key, before = (TurnKey(Tenant("bench"), TurnId(name)) for name in ("erased", "before"))
        await store(connection, before, max(0, int(block_mb * 1e6 / (entry_bytes + 60)) - erased), entry_bytes)
        keys = [TurnKey(Tenant("bench"), TurnId(f"unstored{number}")) for number in range(turns)]
        if turns:
            await asyncio.gather(*(store_encrypted(connection, one, erased, entry_bytes) for one in keys))
        else:
            await store(connection, key, erased, entry_bytes)
        waits_s: dict[str, list[float]] = {"STREAM.INFO": [], "an append": []}
        subjects = {"STREAM.INFO": (f"$JS.API.STREAM.INFO.{STREAM}", b""), "an append": (entry(before, "event"), b"x")}
        asking = [asyncio.create_task(measure_waits(other, *subjects[name], waits_s[name])) for name in subjects]
        log = TurnLog(connection)
        began = time.monotonic()
        count = sum([(await log.erase(one)).entries for one in keys or [key]])
        took_s = time.monotonic() - began
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        print(f"{count} entries of {entry_bytes} bytes in a block of {block_mb} MB: {count / took_s:.0f} a second")
        if turns:
            print(f"{turns} turns with `store: false`: {turns / took_s:.0f} a second")
        for name, waits in waits_s.items():
            print(f"  {name} waits {1000 * median(waits):.0f} ms (median), {1000 * max(waits):.0f} ms (maximum)")


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--block-mb", type=float, default=8.0, help="how full the block of the log is; at most 8")
    parser.add_argument("--entry-bytes", type=count, default=200)
    parser.add_argument("--entries", type=count, default=300, help="how many are erased; with --turns, of each turn")
    parser.add_argument("--turns", type=int, default=0, help="erase this many turns with `store: false` instead of one")
    args = parser.parse_args()
    asyncio.run(main(args.block_mb, args.entry_bytes, args.entries, args.turns))
