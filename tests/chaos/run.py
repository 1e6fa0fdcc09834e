"""`make chaos`: breaks whatever can be broken, by a seed, and has the checker judge. Exit status 1 when something does
not hold, or was not proved.

make chaos                                      one minute of all faults, three nats-servers
make chaos MINUTES=0                            each fault once
make chaos SEED=7 MINUTES=10                    a storm again
make chaos FAULTS=kill-generator,cut-route      these alone
make chaos ARGS='--nodes 1'                     one nats-server
make chaos ARGS='--hedge-after 0.5'             generators that make a late call twice
"""

import argparse
import asyncio
import secrets
import shutil
import statistics
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tailrace.proto.entries import Attempt
from tailrace.proto.subjects import TurnKey
from tests.chaos import standstill
from tests.chaos.faults import KINDS, lacks
from tests.chaos.storm import Seen, Storm, rage
from tests.chaos.system import LOG_BYTES, LOG_BYTES_A_MINUTE, Size
from tests.chaos.waits import waits
from tests.checker import invariants, oracle
from tests.checker.bounds import Bounds
from tests.checker.history import Read
from tests.checker.run import Run, load
from tests.harness.disk import MIB
from tests.promises import PROMISES, Verdict, worst

# Nobody asks for more than they may here: whom a fault kept without an answer and whom noise, nobody could tell apart.
UNKNOWN = ("I13 isolation",)


def main() -> int:
    storm = asked()
    print(f"seed {storm.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="tailrace-chaos-"))
    seen = asyncio.run(rage(storm, folder))
    run = load(folder)
    for line in report(storm, seen, run):
        print(line)
    found = verdicts(storm, seen, run)
    for line in invariants.report(found):
        print(line)
    if not invariants.not_held(found, UNKNOWN):
        shutil.rmtree(folder)
        return 0
    print(f"seed {storm.seed}: what was recorded is kept in {folder} (python -m tests.checker {folder})")
    return 1


def asked() -> Storm:
    """A storm from the command line. What cannot happen on this machine is said, and left out."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="another each time, which is told")
    parser.add_argument("--minutes", type=float, default=1.0, help="0: each kind once, as fast as can be (default: 1)")
    parser.add_argument("--faults", default="", help="kinds, joined by commas (default: all)")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=3, help="nats-servers (default: 3)")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument(
        "--hedge-after", type=float, default=0.0, help="seconds, as TAILRACE_HEDGE_AFTER_S (default: 0, never)"
    )
    parser.add_argument("--at-once", type=int, default=12, help="turns that run at any time (default: 12)")
    # Not in the option's help: argparse would break the names at their hyphens.
    kinds = textwrap.wrap(", ".join(KINDS), 100, break_on_hyphens=False)
    parser.epilog = "\n  ".join(["the faults:", *kinds])
    given = parser.parse_args()
    wanted = given.faults.split(",") if given.faults else list(KINDS)
    if unknown := set(wanted) - set(KINDS):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}: see --help")
    size = Size(
        nodes=given.nodes,
        gateways=given.gateways,
        generators=given.generators,
        hedge_after_s=given.hedge_after,
        log_bytes=LOG_BYTES + int(given.minutes * LOG_BYTES_A_MINUTE),
    )
    return Storm(
        seed=given.seed, minutes=given.minutes, faults=possible(wanted, size), size=size, at_once=given.at_once
    )


def possible(wanted: list[str], size: Size) -> list[str]:
    kept = []
    for name in wanted:
        why = lacks(KINDS[name], size.nodes, has_compiler=shutil.which("cc") is not None)
        if why:
            print(f"SKIPPED: {name}, for {why}.")
        else:
            kept.append(name)
    return kept


def verdicts(storm: Storm, seen: Seen, run: Run) -> dict[str, Verdict]:
    """The five promises over all turns, the invariants of the run, and what is in no history."""
    found = {promise.__name__: worst([promise(run.history(key)) for key in run.acknowledged]) for promise in PROMISES}
    # It is judged once everything has settled, or will not.
    found |= invariants.judge(run, Bounds(end_s=0, hedges=storm.size.hedges))
    found["nothing astray"] = Verdict(not seen.mismatches, f"{seen.mismatches} continuations of what nobody had said")
    found["all ended"] = Verdict(seen.asked == seen.ended, f"{seen.ended} of {seen.asked} turns were read to their end")
    found["all healed"] = Verdict(not seen.problems, "; ".join(seen.problems))
    # A fault that missed proves nothing.
    missed = [name for name, _, happened, _ in happenings(storm, seen, run) if not happened]
    found["faults happened"] = Verdict(not missed, f"never felt: {', '.join(missed)}" if missed else "each kind")
    return found


def happenings(storm: Storm, seen: Seen, run: Run) -> Iterator[tuple[str, int, int, int]]:
    """Kind, how often it was done, how often it was felt, how much."""
    account = run.rest.account
    broken = Counter(call.over for call in account.calls) if account else Counter()
    for name in storm.faults:
        if KINDS[name].strike is None:
            count = broken[name.removeprefix("model-")]
            yield name, count, count, count
        else:
            counted = seen.counts.get(name)
            yield (name, counted.done, counted.happened, counted.felt) if counted else (name, 0, 0, 0)


def report(storm: Storm, seen: Seen, run: Run) -> Iterator[str]:
    yield f"{'fault':20} {'done':>5} {'felt':>5}  how it was felt"
    for name, done, happened, felt in happenings(storm, seen, run):
        yield f"{name:20} {done:5} {happened:5}  {felt} {KINDS[name].felt}"
    done = sum(count.done for count in seen.counts.values())
    folds = run.folds.values()
    skipped, attempts = sum(turn.skipped for turn in folds), sum(turn.attempt for turn in folds)
    reads = run.of(Read)
    readers = len({(read.process, read.turn) for read in reads})
    yield f"{done} faults in {seen.took_s:.0f} s, and {len(run.rest.account.calls) if run.rest.account else 0} calls"
    won = sum(hedges_won(run, key) for key in run.turns)
    yield (
        f"{len(folds)} turns, {sum(turn.end is None for turn in folds)} without an end; "
        f"{attempts} attempts, {won} of them hedges"
    )
    yield f"{len(run.log)} entries, {skipped} of them forks that the chain has skipped"
    yield f"{readers} readers, {len(reads) - readers} reconnects"
    allowed = "1 + take-overs + hedges" if storm.size.hedges else "1 + take-overs"
    yield f"{beyond(run, storm.size.hedges)} calls of Claude beyond {allowed} of their turn"
    waited_for = list(waits(run))
    yield waited("one take-over", [wait.s for wait in waited_for if wait.deaths == 1])
    yield waited("several in a row", [wait.s for wait in waited_for if wait.deaths > 1])
    yield f"longest standstill: {standstill.of_all(run)}"
    yield f"longest standstill: {standstill.of_one(run)}"
    before, after = seen.memory
    for name in before:
        is_same = before[name].pid == after[name].pid
        mib = [held[name].rss_bytes / MIB for held in seen.memory]
        yield f"memory of {name}: {mib[0]:.0f} MiB, {mib[1]:.0f} MiB{'' if is_same else ' (another life)'}"
    yield f"alarms: {dict(seen.alarms) or 'none'}"


def beyond(run: Run, hedges: int) -> int:
    """Calls that no attempt made first and no refusal explains: what a lost link had made again.

    `hedges`: how many more a turn may have that are in no entry.
    """
    if run.rest.account is None:
        return 0
    calls: Counter[str] = Counter()
    for call in run.rest.account.calls:
        is_refused = not call.deltas and call.over not in ("whole", "aborted", "open")
        calls[call.key] += not is_refused
    for key, turn in run.folds.items():
        if turn.request is not None:
            calls[oracle.call_key(turn.request) or ""] -= turn.attempt + max(hedges - hedges_won(run, key), 0)
    return sum(max(count, 0) for count in calls.values())


def hedges_won(run: Run, key: TurnKey) -> int:
    """How many of a turn's attempts are calls that another generator made beside a late one."""
    return sum(isinstance(one.entry, Attempt) and one.entry.is_hedge for one in run.turns[key].valid)


def waited(what: str, times_s: list[float]) -> str:
    """What readers waited for their next delta."""
    if len(times_s) < 2:
        return f"{what}: {len(times_s)} times"
    median, p95 = statistics.median(times_s), statistics.quantiles(times_s, n=20)[-1]
    return f"{what}: {len(times_s)} waits, median {median:.2f} s, p95 {p95:.2f} s, max {max(times_s):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
