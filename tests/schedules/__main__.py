"""`make schedules` simulates turns on a log that loses, repeats, delays and forks. Exit status 1 if a schedule fails.

make schedules                                     twenty thousand seeds
make schedules ARGS='--seed 7 --trace'             one seed, with all that happens
make schedules ARGS='--seed 7 --without fence'     the same with a rule removed, to see what the rule is for
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext

from tests.schedules.generator import CONCURRENCY, RETRY
from tests.schedules.judge import judge
from tests.schedules.many import outcomes_in_processes
from tests.schedules.mutants import MUTANTS, disable
from tests.schedules.schedule import Schedule

SETTINGS = (
    f"settings: defaults, except TAILRACE_CONCURRENCY={CONCURRENCY}, "
    f"TAILRACE_CALL_TRIES_MAX={RETRY.tries_max} and TAILRACE_GRACE_S=0"
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make schedules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, metavar="N", help="play this seed alone")
    parser.add_argument(
        "--seeds",
        type=range_of,
        default="0:20000",
        metavar="FIRST:AFTER_LAST",
        help="play these seeds (default: %(default)s)",
    )
    parser.add_argument(
        "--without", choices=MUTANTS, metavar="RULE", help=f"remove a rule, one of {', '.join(MUTANTS)}"
    )
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happens")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="how many processes play (default: %(default)s)",
    )
    options = parser.parse_args()
    print(SETTINGS, flush=True)
    if options.seed is not None:
        return play_one(options.seed, options.without, is_traced=options.trace)
    seeds: range = options.seeds
    red = handled = 0
    began_s = time.monotonic()
    for outcome in outcomes_in_processes(options.processes, seeds, options.without):
        handled += outcome.handled
        if outcome.evidence:
            red += 1
            print(outcome.evidence)
    played, took_s, cores = len(seeds), time.monotonic() - began_s, os.times()
    computed_s = cores.children_user + cores.children_system
    print(
        f"{played} schedules, {handled} callbacks, {red} red; {played / took_s:.0f} a second in "
        f"{options.processes} processes, {played / computed_s:.0f} a second of one core"
    )
    return 1 if red else 0


def range_of(text: str) -> range:
    """Returns the seeds of `FIRST:AFTER_LAST`, of which there is at least one. Raises ValueError."""
    first, after = map(int, text.split(":"))
    if first >= after:
        raise ValueError(text)
    return range(first, after)


def play_one(seed: int, rule: str | None, *, is_traced: bool) -> int:
    """Plays one seed and prints its trace and verdict; returns the exit status."""
    schedule = Schedule(seed, is_traced=is_traced)
    with disable(rule) if rule else nullcontext():
        schedule.play()
    verdict = judge(schedule)
    print(*(schedule.world.trace or ()), verdict.evidence if not verdict.is_green else "green", sep="\n")
    return 0 if verdict.is_green else 1


if __name__ == "__main__":
    sys.exit(main())
