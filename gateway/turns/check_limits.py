"""Limits as features of turn submission: rates and budgets, the queue, and the tenant's share of the log."""

from typing import NamedTuple

import msgspec

from tailrace.gateway.limits.limiter import Admission, Limiter
from tailrace.gateway.limits.rate_headers import rate_headers
from tailrace.gateway.limits.storage_share import StorageShare
from tailrace.gateway.limits.turn_queue import TurnQueue
from tailrace.gateway.turns.submission import Feature, Submission, TurnSubmission, always, has


class LimitFeatures(NamedTuple):
    """The two steps of rates and budgets: count the request, and reserve what the turn may use."""

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


class QueueFeatures(NamedTuple):
    """The two steps of the queue: refuse a turn if the queue is full, and add its position to its entry."""

    admit: Feature[Submission]
    amend: Feature[Submission]


def queue_features(queue: TurnQueue) -> QueueFeatures:
    """Returns the steps. A batch itself needs no slot and is not counted."""

    async def admit(submission: Submission) -> None:
        if isinstance(submission, TurnSubmission):
            queue.check(submission.principal.tenant)

    async def amend(submission: Submission) -> None:
        position = queue.join(submission.principal.tenant)
        if position is not None:
            submission.entry = msgspec.structs.replace(submission.entry, queue_position=position)
            submission.response_headers.append(lambda _: {"tailrace-queue-position": str(position)})

    return QueueFeatures(Feature(always, admit), Feature(always, amend))


class LogShareFeatures(NamedTuple):
    """The two steps of the share of the log: refuse a turn above it, and count the stored entry."""

    admit: Feature[Submission]
    stored: Feature[Submission]


def log_share_features(share: StorageShare) -> LogShareFeatures:
    """Returns the steps, which count the bytes of every request.

    An entry may be larger than its body: it has the conversation before it.
    """

    async def admit(submission: Submission) -> None:
        share.check(submission.principal.tenant, len(submission.raw))

    async def count_stored(submission: Submission) -> None:
        share.add(submission.principal.tenant, max(len(submission.raw), submission.entry_bytes))

    return LogShareFeatures(Feature(always, admit), Feature(always, count_stored))
