"""`make conformance`: kills a real generator with SIGKILL at each append of each case, and compares the answers.

It takes about an hour, a few seconds for each kill. ARGS='--every 6' kills at each sixth append, and
ARGS='--cases text,web_search' plays these cases only. Exit status 1 if an answer differs, or if a budget is wrong after
all kills.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

import httpx2

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import run_simulated_claude
from tailrace.features.limits.limiter import Limiter
from tailrace.gateway.auth.limits import Limits
from tailrace.gateway.auth.principal import Principal
from tailrace.proto.chain import START
from tailrace.proto.entries import Message
from tailrace.proto.fold import contents, without_mark
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Counters, Slots, TurnLog
from tailrace.proto.ownership import WHOLE, Scope
from tests.conformance.case import read_cases
from tests.conformance.differences import after_kill, as_json
from tests.conftest import apply_streams
from tests.harness import budget_audit
from tests.harness.budget_audit import BudgetAudit
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.harness.turn_builder import request
from tests.promises import History, Verdict, nothing_held

TENANT = Tenant("tenant")
LIMITS_OF_KEYS = Limits(**budget_audit.LIMITS)


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
    key = await append_reserving_request(own, line)
    if appends:
        await own.run_and_kill_after(appends)
    async with own.running_generator():
        turn = await own.wait_until_settled(key)
    if turn.outcome != "completed":
        return f"{turn.outcome} {turn.error}"
    found = contents(turn.blocks, turn.stop.stop_reason)
    return after_kill([without_mark(block) for block in found])


async def append_reserving_request(own: OwnSystem, line: str) -> TurnKey:
    """Stores the request of a turn as a gateway does, with what the turn reserves of the budgets of its tenant."""
    key = TurnKey(TENANT, TurnId(new_id()))
    limiter = Limiter(Counters(own.connection), Slots(own.connection), own.log, LIMITS_OF_KEYS, LIMITS_OF_KEYS)
    admission = limiter.admission(Principal(Scope(TENANT, WHOLE)))
    assert admission is not None
    entry = request(messages=[Message("user", f"#sim {line}")], max_tokens=1_000_000)
    await own.log.append(key, START, await admission.reserve_turn(key.turn, entry))
    return key


async def judge_budgets(server: NatsServer, connection: Connection, database: Path) -> Verdict:
    """Returns whether the budgets are right when persistence has recorded all turns."""
    async with Persistence(server.url, database):
        found = await BudgetAudit(connection, database).wait_until_exact()
    return nothing_held(History(budgets=tuple(found)))


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
            held = await judge_budgets(server, connection, Path(folder) / "tailrace.db")
            found += [] if held.is_green else [f"budgets: {held.evidence}"]
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
