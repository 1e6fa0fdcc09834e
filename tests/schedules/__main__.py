"""`make schedules`: plays turns against a model of the log that loses, repeats, delays and forks. Exit status 1 if red.

make schedules                                     twenty thousand of them
make schedules ARGS='--seed 7 --trace'             one, with all that happens in it
make schedules ARGS='--seed 7 --without fence'     the same, with a rule taken away: what is the rule good for?
"""

import argparse
import os
import sys
import time
from contextlib import nullcontext

from tests.schedules.judge import judge
from tests.schedules.many import over
from tests.schedules.mutants import MUTANTS, without
from tests.schedules.schedule import Schedule


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make schedules", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, metavar="N", help="play this one alone")
    parser.add_argument(
        "--seeds", default="0:20000", metavar="FIRST:AFTER_LAST", help="play these (default: %(default)s)"
    )
    parser.add_argument(
        "--without", choices=MUTANTS, metavar="RULE", help=f"play them without this rule, of {', '.join(MUTANTS)}"
    )
    parser.add_argument("--trace", action="store_true", help="of --seed: tell all that happens")
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="that play at once (default: %(default)s)",
    )
    asked = parser.parse_args()
    if asked.seed is not None:
        return told(asked.seed, asked.without, is_traced=asked.trace)
    first, after = map(int, asked.seeds.split(":"))
    red = happened = 0
    began_s = time.monotonic()
    for outcome in over(asked.processes, first, after, asked.without):
        happened += outcome.happened
        if outcome.evidence:
            red += 1
            print(outcome.evidence)
    played, took_s, cores = after - first, time.monotonic() - began_s, os.times()
    computed_s = cores.children_user + cores.children_system
    print(
        f"{played} schedules, {happened} happenings, {red} red; {played / took_s:.0f} a second in "
        f"{asked.processes} processes, {played / computed_s:.0f} a second of one core"
    )
    return 1 if red else 0


def told(seed: int, rule: str | None, *, is_traced: bool) -> int:
    schedule = Schedule(seed, is_traced=is_traced)
    with without(rule) if rule else nullcontext():
        schedule.play()
    verdict = judge(schedule)
    print(*(schedule.world.trace or ()), verdict.evidence if not verdict.is_green else "green", sep="\n")
    return 0 if verdict.is_green else 1


if __name__ == "__main__":
    sys.exit(main())
