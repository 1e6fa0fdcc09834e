"""`python -m tests.schedules --seed 7 --trace` replays one schedule; `--seeds 0:20000` many. Exit status 1 if red."""

import argparse
import sys
import time
from contextlib import nullcontext

from tests.schedules.judge import judge
from tests.schedules.mutants import MUTANTS, without
from tests.schedules.schedule import Schedule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.schedules", description="Play schedules, and judge them.")
    parser.add_argument("--seed", type=int, help="play this one alone")
    parser.add_argument("--seeds", default="0:20000", help="FIRST:AFTER_LAST (default: %(default)s)")
    parser.add_argument("--without", choices=MUTANTS, help="take a rule away, and see what it is good for")
    parser.add_argument("--trace", action="store_true", help="tell all that happens")
    asked = parser.parse_args()
    first, after = (asked.seed, asked.seed + 1) if asked.seed is not None else map(int, asked.seeds.split(":"))
    red = happened = 0
    began_s = time.process_time()
    for seed in range(first, after):
        schedule = Schedule(seed, is_traced=asked.trace)
        with without(asked.without) if asked.without else nullcontext():
            schedule.play()
        verdict = judge(schedule)
        happened += schedule.world.happened
        for line in schedule.world.trace or ():
            print(line)
        if not verdict.is_green:
            red += 1
            print(verdict.evidence)
    took_s = time.process_time() - began_s
    played = after - first
    print(f"{played} schedules, {happened} happenings, {red} red; {played / took_s:.0f} a second of one core")
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
