"""`make chaos`: lets a storm rage and judges it by the five promises. Exit status 1 when one is broken or unproved.

make chaos ARGS='--turns 1000 --seconds-between-kills 1 --generators 3 --seed 7'
"""

import argparse
import asyncio
import secrets
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from tests.chaos.storm import Seen, Storm, rage
from tests.promises import PROMISES, Verdict, worst


def main() -> int:
    storm = asked()
    print(f"seed {storm.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="tailrace-chaos-") as folder:
        seen = asyncio.run(rage(storm, Path(folder)))
    for line in report(seen):
        print(line)
    found = verdicts(seen)
    for name, verdict in found.items():
        print(
            f"{name:18} {'kept' if verdict.is_green else 'BROKEN' if verdict.holds is False else 'unproved'}"
            f"  {verdict.evidence}".rstrip()
        )
    return 0 if all(verdict.is_green for verdict in found.values()) else 1


def asked() -> Storm:
    """A storm from the command line: every field is an option."""
    parser = argparse.ArgumentParser(prog="make chaos", description="Kill, cut off, and judge by the five promises.")
    defaults = Storm(seed=secrets.randbelow(10**6))
    for name, default in msgspec.structs.asdict(defaults).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return Storm(**vars(parser.parse_args()))


def verdicts(seen: Seen) -> dict[str, Verdict]:
    """The five promises over all turns, and what a storm can say beyond them: nothing is told or paid twice."""
    found = {promise.__name__: worst([promise(history) for history in seen.histories]) for promise in PROMISES}
    right = f"{len(seen.histories) - len(seen.wrong)} of {len(seen.histories)} texts are the ones asked for"
    found["right_text"] = Verdict(bool(seen.histories) and not seen.wrong, " ".join([right, *seen.wrong[:3]]))
    is_paid_once = seen.calls <= seen.attempts and not seen.mismatches
    found["paid_once"] = Verdict(
        is_paid_once, f"{seen.calls} calls in {seen.attempts} attempts, {seen.mismatches} astray"
    )
    found["no_alarm"] = Verdict(not seen.alarms, str(dict(seen.alarms)) if seen.alarms else "")
    # A kill that missed proves nothing.
    found["faults_happened"] = Verdict(seen.hits > 0 and seen.cuts > 0, f"{seen.hits} hits, {seen.cuts} cuts")
    return found


def report(seen: Seen) -> Iterator[str]:
    yield f"{len(seen.histories)} turns in {seen.took_s:.0f} s; {seen.entries} entries, {seen.skipped} not valid"
    yield f"{seen.connections} connections of readers, {seen.cuts} of them cut"
    yield f"{len(seen.killed)} generators killed, {seen.hits} of them with a running turn; {seen.attempts} attempts"
    yield waited("one take-over", [wait.s for wait in seen.waits if wait.deaths == 1])
    yield waited("several in a row", [wait.s for wait in seen.waits if wait.deaths > 1])
    yield f"alarms: {dict(seen.alarms) or 'none'}"


def waited(what: str, times_s: list[float]) -> str:
    """What readers waited for their next delta."""
    if len(times_s) < 2:
        return f"{what}: {len(times_s)} times"
    median, p95 = statistics.median(times_s), statistics.quantiles(times_s, n=20)[-1]
    return f"{what}: {len(times_s)} waits, median {median:.2f} s, p95 {p95:.2f} s, max {max(times_s):.2f} s"


if __name__ == "__main__":
    sys.exit(main())
