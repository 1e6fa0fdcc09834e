"""`make chaos` injects faults by a seed and checks the run. Exit status 1 if an invariant does not hold or is unknown.

make chaos                                       one minute of all faults, three nats-servers
make chaos MINUTES=0                             each fault once
make chaos SEED=7 MINUTES=10                     the faults of seed 7
make chaos FAULTS=kill-generator,cut-route       these faults
make chaos ARGS='--servers 1'                    one nats-server
make chaos ARGS='--concurrent-batches 0'         no batches
make chaos ARGS='--setting generator TAILRACE_DELTA_INTERVAL_S=0.1'

All settings have their defaults, unless `--setting` changes them; the first line of the output says so. Each key and
each tenant has budgets and a limit of running turns.
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
from typing import get_args

from tests.chaos import pauses
from tests.chaos.campaign import Campaign, Observations, run_campaign
from tests.chaos.faults import KINDS, why_impossible
from tests.chaos.system import LOG_BYTES, LOG_BYTES_A_MINUTE, Size
from tests.checker import expected_answer, invariants
from tests.checker.history import Read
from tests.checker.run import Run, load
from tests.checker.verdicts import Bounds
from tests.harness.disk import MIB
from tests.harness.system import Role
from tests.promises import OF_TURNS, Verdict, worst

# No tenant exceeds its limits, and no answer is steered.
UNKNOWN = ("I13 isolation", "I20 steers")
# Faults that only a run with batches can have.
BATCH_FAULTS = [name for name, kind in KINDS.items() if kind.group == "batch"]
UNKNOWN_WITHOUT_BATCHES = (*UNKNOWN, *invariants.OF_BATCHES)


def main() -> int:
    campaign = parse_arguments()
    folder = Path(tempfile.mkdtemp(prefix="tailrace-chaos-"))
    observed = asyncio.run(run_campaign(campaign, folder))
    run = load(folder)
    verdicts = judge(campaign, observed, run)
    print(*report(campaign, observed, run), *invariants.report(verdicts), sep="\n")
    if not invariants.find_failed(verdicts, UNKNOWN if campaign.concurrent_batches else UNKNOWN_WITHOUT_BATCHES):
        shutil.rmtree(folder)
        return 0
    print(f"seed {campaign.seed}: the run is kept in {folder} (python -m tests.checker {folder})")
    return 1


def parse_arguments() -> Campaign:
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: random")
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="0: each kind once, as fast as possible (default: 1)"
    )
    parser.add_argument("--faults", default="", help="kinds, separated by commas (default: all)")
    parser.add_argument("--servers", type=int, choices=(1, 3), default=3, help="nats-servers (default: 3)")
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--generators", type=int, default=2)
    parser.add_argument("--concurrent-turns", type=int, default=12, help="turns that run at any time (default: 12)")
    parser.add_argument("--concurrent-batches", type=int, default=3, help="batches that run at any time (default: 3)")
    parser.add_argument(
        "--setting",
        nargs=2,
        action="append",
        default=[],
        metavar=("ROLE", "NAME=VALUE"),
        help=f"a setting of all processes of a role ({', '.join(get_args(Role))})",
    )
    # In the option's help, argparse would break the names at their hyphens.
    kinds = textwrap.wrap(", ".join(KINDS), 100, break_on_hyphens=False)
    parser.epilog = "\n  ".join(["the faults:", *kinds])
    given = parser.parse_args()
    wanted = given.faults.split(",") if given.faults else list(KINDS)
    if not given.concurrent_batches:
        wanted = [name for name in wanted if name not in BATCH_FAULTS]
    if unknown := set(wanted) - set(KINDS):
        parser.error(f"there is no fault {', '.join(sorted(unknown))}: see --help")
    settings: dict[str, dict[str, str]] = {}
    for role, setting in given.setting:
        if role not in get_args(Role):
            parser.error(f"there is no role {role}: use {', '.join(get_args(Role))}")
        name, _, value = setting.partition("=")
        settings.setdefault(role, {})[name] = value
    size = Size(
        servers=given.servers,
        gateways=given.gateways,
        generators=given.generators,
        log_bytes=LOG_BYTES + int(given.minutes * LOG_BYTES_A_MINUTE),
        settings=settings,
    )
    print(f"seed {given.seed}; {size}", flush=True)
    return Campaign(
        seed=given.seed,
        minutes=given.minutes,
        faults=select_possible(wanted, size),
        size=size,
        concurrent_turns=given.concurrent_turns,
        concurrent_batches=given.concurrent_batches,
    )


def select_possible(wanted: list[str], size: Size) -> list[str]:
    """Returns the faults that this machine allows, and prints the others."""
    kept = []
    for name in wanted:
        why = why_impossible(KINDS[name], size.servers, has_compiler=shutil.which("cc") is not None)
        if why:
            print(f"SKIPPED: {name}, because {why}.")
        else:
            kept.append(name)
    return kept


def judge(campaign: Campaign, observed: Observations, run: Run) -> dict[str, Verdict]:
    """Returns the verdicts on the promises for all turns, on the invariants, and on what was observed."""
    verdicts = judge_promises(run)
    verdicts |= invariants.judge(run, Bounds(end_s=0))
    ineffective = [name for name, _, effective, _ in counts(campaign, observed, run) if not effective]
    verdicts |= {
        "continuations": Verdict(not observed.mismatches, f"{observed.mismatches} that do not match"),
        "all ended": Verdict(
            observed.posted == observed.ended, f"{observed.ended} of {observed.posted} turns were read to their end"
        ),
        "all healed": Verdict(not observed.problems, "; ".join(observed.problems)),
        "faults": Verdict(not ineffective, f"without effect: {', '.join(ineffective)}" if ineffective else "each kind"),
    }
    return verdicts


def judge_promises(run: Run) -> dict[str, Verdict]:
    """Returns the worst verdict on each promise about turns. The invariant I21 has the promise about budgets."""
    return {
        promise.__name__: worst([promise(run.history(key)) for key in run.acknowledged_turns]) for promise in OF_TURNS
    }


def counts(campaign: Campaign, observed: Observations, run: Run) -> Iterator[tuple[str, int, int, int]]:
    """Yields kind, how often it was injected, how often it had an effect, and the effect."""
    account = run.final.account
    failed_calls = Counter(call.over for call in account.calls) if account else Counter()
    for name in campaign.faults:
        if KINDS[name].inject is None:
            count = (observed.wrong if name in BATCH_FAULTS else failed_calls)[name.rpartition("-")[2]]
            yield name, count, count, count
        else:
            counted = observed.counts.get(name)
            yield (name, counted.injected, counted.effective, counted.effect) if counted else (name, 0, 0, 0)


def report(campaign: Campaign, observed: Observations, run: Run) -> Iterator[str]:
    yield f"{'fault':20} {'done':>5} {'felt':>5}  effect"
    for name, injected, effective, effect in counts(campaign, observed, run):
        yield f"{name:20} {injected:5} {effective:5}  {effect} {KINDS[name].effect}"
    injected = sum(count.injected for count in observed.counts.values())
    folds = run.folds.values()
    forks, attempts = sum(turn.skipped for turn in folds), sum(turn.attempt for turn in folds)
    reads = run.of(Read)
    readers = len({(read.process, read.turn) for read in reads})
    calls = len(run.final.account.calls) if run.final.account else 0
    yield f"{injected} faults in {observed.took_s:.0f} s, and {calls} calls"
    outcomes = Counter(turn.outcome for turn in folds)
    yield f"{len(folds)} turns: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())}"
    yield f"{attempts} attempts, {surplus_calls(run)} surplus calls"
    yield f"{len(run.log)} entries, {forks} of them forks"
    yield f"{readers} readers, {len(reads) - readers} reconnects"
    delays = list(pauses.takeover_delays(run))
    yield summary("after one takeover", [delay.s for delay in delays if delay.takeovers == 1])
    yield summary("after several takeovers", [delay.s for delay in delays if delay.takeovers > 1])
    yield f"longest pause: {pauses.longest_pause(run)}"
    yield f"longest pause: {pauses.longest_turn_pause(run)}"
    before, after = observed.memory
    for name in before:
        is_same = before[name].pid == after[name].pid
        mib = [held[name].rss_bytes / MIB for held in observed.memory]
        yield f"memory of {name}: {mib[0]:.0f} MiB, {mib[1]:.0f} MiB{'' if is_same else ' (restarted)'}"
    yield f"errors in the logs: {dict(observed.errors) or 'none'}"


def surplus_calls(run: Run) -> int:
    """Returns the calls that are not the first of an attempt and follow no refusal: those of lost connections."""
    if run.final.account is None:
        return 0
    calls: Counter[str] = Counter()
    deleted = run.deleted_questions
    for call in run.final.account.calls:
        if call.question in deleted:
            continue
        is_refused = not call.deltas and call.over not in ("whole", "aborted", "open")
        calls[call.key] += not is_refused
    for turn in run.folds.values():
        if turn.request is not None:
            calls[expected_answer.call_key(turn.request) or ""] -= turn.attempt
    return sum(max(count, 0) for count in calls.values())


def summary(what: str, times_s: list[float]) -> str:
    """Summarises how long readers waited for their next delta."""
    if len(times_s) < 2:
        return f"next delta {what}: {len(times_s)} times"
    median, p95 = statistics.median(times_s), statistics.quantiles(times_s, n=20)[-1]
    return f"next delta {what}: {len(times_s)} times, median {median:.2f} s, p95 {p95:.2f} s, max {max(times_s):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
