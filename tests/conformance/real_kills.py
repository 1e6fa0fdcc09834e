"""`make conformance`: kills a real generator with SIGKILL at each append of each case, and compares the answers.

It takes about an hour, a few seconds for each kill. ARGS='--every 6' kills at each sixth append, and
ARGS='--cases text,web_search' plays these cases only. Exit status 1 if an answer differs.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import httpx2

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.proto.fold import contents, without_mark
from tailrace.proto.nats import Connection, TurnLog
from tests.conformance.case import read_cases
from tests.conformance.differences import after_kill, as_json
from tests.conftest import apply_streams
from tests.harness.own_system import OwnSystem


async def compare_case(own: OwnSystem, name: str, every: int) -> tuple[int, list[str]]:
    """Returns how often a generator was killed, and a line for each answer that differs."""
    case = read_cases()[name]
    line = f"case={name} rate=0"
    whole = await answered_after(own, line, 0)
    wanted = after_kill(as_json(case.whole).get("content", [])) if not case.raw else whole
    kills, found = 0, [] if whole == wanted else [f"{name}: {str(whole)[:1000]} instead of {str(wanted)[:1000]}"]
    for appends in range(1, len(case.events) + 2, every):
        content = await answered_after(own, line, appends)
        kills += 1
        if content != wanted:
            found.append(f"{name}, killed after append {appends}: {str(content)[:1000]}")
    return kills, found


async def answered_after(own: OwnSystem, line: str, appends: int) -> list[dict[str, object]] | str:
    """Returns the content of an answer whose generator was killed after that many appends; 0: was not killed."""
    # Output that the model has not reported is estimated, from large texts too: the limit must be above it.
    key = await own.append_request(line, max_tokens=128_000)
    if appends:
        await own.run_and_kill_after(appends)
    async with own.running_generator():
        turn = await own.wait_until_settled(key)
    if turn.outcome != "completed":
        return f"{turn.outcome} {turn.error}"
    found = contents(turn.blocks, turn.stop.stop_reason)
    return after_kill([without_mark(block) for block in found])


async def play(names: list[str], every: int) -> int:
    """Plays the cases and prints what differs; returns the exit status."""
    kills, found = 0, list[str]()
    with tempfile.TemporaryDirectory() as folder:
        async with NatsServer(Path(folder)) as server, run_simulated_claude() as claude:
            await apply_streams(server.url)
            async with httpx2.AsyncClient(base_url=claude) as http:
                for name in names:
                    await http.post(f"/_sim/cases/{name}", content=b"\n".join(read_cases()[name].lines))
            connection = await Connection.open(server.url, "conformance")
            own = OwnSystem(server, connection, TurnLog(connection), claude)
            for name in names:
                more, differences = await compare_case(own, name, every)
                kills, found = kills + more, found + differences
                sys.stdout.write(f"{name}: {more} kills, {len(differences)} differences\n")
                sys.stdout.flush()
            await connection.close()
    sys.stdout.write(
        "".join(f"{line}\n" for line in found) + f"{len(names)} cases, {kills} kills, {len(found)} differ\n"
    )
    return 1 if found else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.real_kills", description=__doc__)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="kill at each Nth append (default 1)")
    parser.add_argument("--cases", default=",".join(read_cases()), metavar="A,B", help="the cases (default: all)")
    options = parser.parse_args()
    return asyncio.run(play(options.cases.split(","), options.every))


if __name__ == "__main__":
    sys.exit(main())
