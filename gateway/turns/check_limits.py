"""Limits as features of turn submission: rates and budgets, the queue, and the tenant's share of the log."""

from operator import attrgetter

import msgspec

from tailrace.gateway.limits.limiter import Admission, Limiter
from tailrace.gateway.limits.rate_headers import rate_headers
from tailrace.gateway.limits.storage_share import StorageShare
from tailrace.gateway.limits.turn_queue import TurnQueue
from tailrace.gateway.turns.submission import Feature, Submission, TurnSubmission

Features = tuple[Feature[Submission], Feature[Submission]]


def limit_features(limiter: Limiter) -> Features:
    """Returns the steps of rates and budgets: `admit` counts the request, `amend` reserves what the turn may use.

    They are skipped for keys and tenants without limits. A submission that stores no turn gives back what it has
    counted and reserved.
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

    return Feature(admit, has_limits), Feature(reserve, attrgetter("admission"))


def queue_features(queue: TurnQueue) -> Features:
    """Returns the steps of the queue: `admit` refuses a turn if it is full, `amend` adds its position to its entry.

    A batch itself needs no slot and is not counted.
    """

    async def admit(submission: Submission) -> None:
        if isinstance(submission, TurnSubmission):
            queue.check(submission.principal.tenant)

    async def amend(submission: Submission) -> None:
        position = queue.join(submission.principal.tenant)
        if position is not None:
            submission.entry = msgspec.structs.replace(submission.entry, queue_position=position)
            submission.response_headers.append(lambda _: {"tailrace-queue-position": str(position)})

    return Feature(admit), Feature(amend)


def log_share_features(share: StorageShare) -> Features:
    """Returns the steps of the share of the log: `admit` refuses a turn above it, `stored` counts the entry's bytes.

    An entry may be larger than its body: it has the conversation before it.
    """

    async def admit(submission: Submission) -> None:
        share.check(submission.principal.tenant, len(submission.raw))

    async def count_stored(submission: Submission) -> None:
        share.add(submission.principal.tenant, max(len(submission.raw), submission.entry_bytes))

    return Feature(admit), Feature(count_stored)
