"""Lost acknowledgements of appends: `python -m benchmarks.lost`. No entry may be stored twice (FAULTS F14).

Many turns are written at once through a proxy that drops every second acknowledgement. Counts the words that are in the
log twice or not at all.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.command_line import count, new_parser
from benchmarks.log_server import running_log
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, TurnLog, jetstream_log
from tailrace.proto.ownership import ScopedKey
from tests.harness.generator_in_loop import words
from tests.harness.lossy_link import LossyLink
from tests.harness.turn_writer import Writer

WRITERS = 20
# The default of two seconds would make each lost acknowledgement a long wait.
WAIT_S = 0.1


async def main(lost: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        async with running_log(Path(folder)) as (nats, connection):
            begun = time.perf_counter()
            wrong = await lost_acknowledgements(nats, TurnLog(connection), Tenant("bench"), count=lost)
            took_s = time.perf_counter() - begun
    print(f"{lost} lost acknowledgements in {took_s:.0f} s: {wrong} turns that are not as written")
    return 1 if wrong else 0


async def lost_acknowledgements(server: NatsServer, log: TurnLog, tenant: Tenant, *, count: int) -> int:
    """Loses `count` acknowledgements; returns the number of turns whose log differs from what was written (0: good)."""
    wait_s, jetstream_log.PUBLISH_TIMEOUT_S = jetstream_log.PUBLISH_TIMEOUT_S, WAIT_S
    try:
        async with LossyLink(server.url, share=0.5) as losing:
            connection = await Connection.open(losing.url, "losing")

            async def write() -> tuple[TurnKey, int]:
                writer, appended = Writer(TurnLog(connection), TurnKey(tenant, TurnId(new_id()))), 0
                await writer.open()
                while losing.lost < count:
                    await writer.store_texts(words(appended + 1).split()[appended] + " ")
                    appended += 1
                await writer.end()
                return writer.key, appended

            written = await asyncio.gather(*(write() for _ in range(WRITERS)))
            await connection.close()
    finally:
        jetstream_log.PUBLISH_TIMEOUT_S = wait_s
    found = [(await log.read_turn(ScopedKey.whole(key)), total) for key, total in written]
    return sum(
        (turn.text.strip(), turn.skipped, turn.outcome) != (words(total), 0, "completed") for turn, total in found
    )


if __name__ == "__main__":
    parser = new_parser(__doc__)
    parser.add_argument("--count", type=count, default=1000)
    sys.exit(asyncio.run(main(parser.parse_args().count)))
