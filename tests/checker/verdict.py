"""How an invariant comes to its verdict: what was looked at, and the first thing that is wrong. Pure."""

from collections.abc import Iterable

import msgspec

from tests.promises import Verdict


def broken(evidence: str, *shown: msgspec.Struct) -> Verdict:
    return Verdict(False, evidence, shown)


def unknown(evidence: str, *shown: msgspec.Struct) -> Verdict:
    return Verdict(None, evidence, shown)


def verdict(looked_at: int, what: str, problems: Iterable[Verdict]) -> Verdict:
    """The first problem that is false, else the first that is unknown, and how many more there are of its sort.

    With none it holds, unless nothing was looked at: that proves nothing.
    """
    found = [problem for problem in problems if problem.holds is not True]
    worst = [problem for problem in found if problem.holds is False] or found
    if worst:
        first, more = worst[0], len(worst) - 1
        return first._replace(evidence=f"{first.evidence} (and {more} more)") if more else first
    return Verdict(True, f"{looked_at} {what}") if looked_at else unknown(f"there were no {what}")
