"""Limits as a feature of turn submission: counts the request, and reserves what the turn may use."""

from typing import NamedTuple

from tailrace.gateway.limits.limiter import Admission, Limiter
from tailrace.gateway.limits.rate_headers import rate_headers
from tailrace.gateway.turns.submission import Feature, Submission, has


class LimitFeatures(NamedTuple):
    """The two steps of limits."""

    admit: Feature[Submission]
    reserve: Feature[Submission]


def limit_features(limiter: Limiter) -> LimitFeatures:
    """Returns the steps, which are skipped for keys and tenants without limits.

    A submission that stores no turn gives back what it has counted and reserved.
    """

    async def admit(submission: Submission) -> None:
        admission = limiter.admission(submission.principal)
        submission.admission = admission
        submission.response_headers.append(lambda path: rate_headers(path, admission.standings.values(), limiter.now()))
        submission.cleanup.push_async_callback(release, submission, admission)
        await admission.count_request()

    async def release(submission: Submission, admission: Admission) -> None:
        if not submission.may_be_stored:
            await admission.release()

    async def reserve(submission: Submission) -> None:
        if submission.admission is not None:
            submission.entry = await submission.admission.reserve_turn(submission.turn.turn, submission.entry)

    def has_limits(submission: Submission) -> bool:
        return limiter.has_limits(submission.principal)

    return LimitFeatures(Feature(has_limits, admit), Feature(has("admission"), reserve))
