"""Pauses of running turns after each fault of a three-server cluster: `python -m benchmarks.cluster`.

Two gateways stream running turns, and a client repeats a POST until it is accepted. A pause is the longest silence of
any reader after the fault; it includes the pause between two words. Each is printed beside its limit.
"""

import asyncio
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic

import msgspec

from benchmarks.command_line import count, new_parser
from tests.harness.cluster_faults import FAULTS, Fault
from tests.harness.cluster_system import ClusterSystem, running_cluster

TURNS = 4
WORDS = {"number": 300, "rate": 20}
POST_S_MAX = 30.0
AGAIN_S = 0.2


class FaultMeasurement(msgspec.Struct, frozen=True):
    """One fault, once."""

    silence_s: float
    accepted_s: float
    """Until a POST was accepted, from the fault on."""
    slowest_s: float
    """The slowest answer to a POST, accepted or not."""
    attempts: int
    calls: int
    broken: str
    """What was not as it should be, in the end."""


async def measure_acceptance(system: ClusterSystem) -> tuple[float, float]:
    """Returns the seconds until a POST was accepted, and those of the slowest response until then."""
    began, slowest_s = monotonic(), 0.0
    while monotonic() < began + POST_S_MAX:
        posted, key = await system.post("words=3 rate=0")
        slowest_s = max(slowest_s, posted.took_s)
        if key is not None:
            accepted_s = monotonic() - began
            await system.wait_for_end(key)
            return accepted_s, slowest_s
        await asyncio.sleep(AGAIN_S)
    return POST_S_MAX, slowest_s


async def measure_fault(system: ClusterSystem, fault: Fault) -> FaultMeasurement:
    await system.wait_until_healed()
    attempts, calls = await system.attempts(), await system.calls()
    async with system.streaming(TURNS, **WORDS) as listeners:
        before = monotonic()
        await fault(system)
        # Servers that had to be started again have the bar from then on.
        since = monotonic() if fault.__name__ == "kill_all" else before
        posting = asyncio.create_task(measure_acceptance(system))
    accepted_s, slowest_s = await posting
    await system.wait_until_healed()
    broken = ""
    for listener in listeners:
        turn, verdict = await system.verdict(listener)
        if not verdict.is_green or turn.text != listener.text:
            broken = verdict.evidence or "another text"
    silence_s = max(listener.delta_pause_s(since) for listener in listeners)
    attempts, calls = await system.attempts() - attempts, await system.calls() - calls
    if calls > attempts:
        broken = f"{calls} calls in {attempts} attempts"
    return FaultMeasurement(silence_s, accepted_s, slowest_s, attempts, calls, broken)


async def main(times: int, names: list[str]) -> int:
    print(
        f"{'fault':24} {'bar':>5} {'silence: median':>15} {'max':>6} {'accepted: median':>16} {'max':>6}"
        f" {'slowest POST':>12} {'attempts/turns':>14} {'calls':>5}"
    )
    broken: list[str] = []
    for fault, bar_s in FAULTS.items():
        if names and fault.__name__ not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            async with running_cluster(Path(folder)) as system:
                seen = [await measure_fault(system, fault) for _ in range(times)]
        silences, posts = [one.silence_s for one in seen], [one.accepted_s for one in seen]
        attempts, calls = sum(one.attempts for one in seen), sum(one.calls for one in seen)
        print(
            f"{fault.__name__:24} {bar_s:5g} {median(silences):15.2f} {max(silences):6.2f} {median(posts):16.2f}"
            f" {max(posts):6.2f} {max(one.slowest_s for one in seen):12.2f}"
            f" {attempts:>9}/{times * (TURNS + 1)} {calls:5}  n={times}",
            flush=True,
        )
        broken += [f"{fault.__name__}: {one.broken}" for one in seen if one.broken]
    print("\n".join(broken) or "every turn was complete, without repeats, with at most one call for each attempt")
    return bool(broken)


if __name__ == "__main__":
    known = [fault.__name__ for fault in FAULTS]
    parser = new_parser(__doc__)
    parser.add_argument("--times", type=count, default=5)
    parser.add_argument("fault", nargs="*", help=f"by default all: {', '.join(known)}")
    given = parser.parse_args()
    if unknown := set(given.fault) - set(known):
        parser.error(f"unknown fault: {', '.join(sorted(unknown))}")
    sys.exit(asyncio.run(main(given.times, given.fault)))
