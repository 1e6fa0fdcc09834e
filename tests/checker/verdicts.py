"""Bounds of a run, and how the problems of an invariant become one verdict."""

from collections.abc import Iterable

import msgspec

from tests.promises import Verdict


class Bounds(msgspec.Struct, frozen=True):
    """The limits of a run: the longest times, and the largest growth."""

    end_s: float = 60.0
    """From the last fault until every turn has its end. 0: the run has waited long enough."""
    cancel_s: float = 2.0
    """From a cancellation or an end until all calls of the turn are closed."""
    clock_s: float = 0.05
    """Difference between the log's clock and ours."""
    rss_bytes_per_h: float = 1024.0**2
    rss_judged_after_s: float = 600.0
    """A process grows after its start, so the slope is computed over at least this time."""
    success: float = 0.999
    """Share of requests that must succeed while another tenant sends too many."""


def violation(evidence: str, *shown: msgspec.Struct) -> Verdict:
    return Verdict(False, evidence, shown)


def unknown(evidence: str, *shown: msgspec.Struct) -> Verdict:
    return Verdict(None, evidence, shown)


def combine(checked: int, what: str, problems: Iterable[Verdict]) -> Verdict:
    """Returns the first violation, or the first unknown, with the number of others.

    Without a problem the invariant holds, unless nothing was checked, which proves nothing.
    """
    found = [problem for problem in problems if problem.holds is not True]
    worst = [problem for problem in found if problem.holds is False] or found
    if worst:
        first, more = worst[0], len(worst) - 1
        return first._replace(evidence=f"{first.evidence} (and {more} more)") if more else first
    return Verdict(True, f"{checked} {what}") if checked else unknown(f"there were no {what}")
