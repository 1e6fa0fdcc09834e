"""Invariants of what processes hold: nothing is left behind. Pure."""

from collections import defaultdict
from collections.abc import Iterator

from tests.checker.bounds import Bounds
from tests.checker.history import Census
from tests.checker.run import NS_PER_S, Run
from tests.checker.verdict import broken, verdict
from tests.promises import Verdict


def resources(run: Run, bounds: Bounds) -> Verdict:
    """I12: nothing is left behind: each count is at the end what it was at the beginning, and memory does not grow.

    A process that was started again may hold no more than the one before it. Memory is compared within one life.
    """
    taken: dict[str, list[Census]] = defaultdict(list)
    for census in run.of(Census):
        taken[census.subject].append(census)
    twice = {subject: some for subject, some in taken.items() if len(some) > 1}
    return verdict(len(twice), "processes that were counted twice", _leaks(twice, bounds))


def _leaks(taken: dict[str, list[Census]], bounds: Bounds) -> Iterator[Verdict]:
    for subject, (first, *_, last) in taken.items():
        for name, count in last.counts.items():
            more = count - first.counts.get(name, 0)
            if name != "rss_bytes" and more > 0:
                yield broken(f"{subject} has {more} {name} more than at the beginning", first, last)
        took_s = (last.invoked - first.invoked) / NS_PER_S
        if first.pid == last.pid and "rss_bytes" in first.counts and took_s >= bounds.rss_judged_after_s:
            slope = (last.counts.get("rss_bytes", 0) - first.counts["rss_bytes"]) / took_s * 3600
            if slope > bounds.rss_bytes_per_h:
                yield broken(f"{subject} grows by {slope / 2**20:.1f} MiB an hour", first, last)
