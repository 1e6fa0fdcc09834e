"""Limits as features of turn submission: rates and budgets, the queue, and the tenant's share of the log."""

import msgspec

from tailrace.gateway.limits.limiter import Admission, Limiter
from tailrace.gateway.limits.rate_headers import rate_headers
from tailrace.gateway.limits.storage_share import StorageShare
from tailrace.gateway.limits.turn_queue import TurnQueue
from tailrace.gateway.turns.submission import Feature, Submission, TurnSubmission
from tailrace.proto.ids import TurnKey

Features = tuple[Feature[Submission], Feature[Submission]]


class Admissions:
    """The admissions of the submissions that are under way, by rates and budgets."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._by_turn: dict[TurnKey, Admission] = {}

    def of(self, submission: Submission) -> Admission | None:
        """Returns what the submission has counted and reserved; None where no limit applies."""
        return self._by_turn.get(submission.own_turn)

    def of_batch(self, submission: Submission) -> Admission:
        """Like `of`; where no limit applies, returns an admission that reserves nothing."""
        return self.of(submission) or self._limiter.admission(submission.principal)

    def features(self) -> Features:
        """Returns the steps: `admit` counts the request, `amend` reserves what the turn may use.

        They are skipped for keys and tenants without limits. A submission that stores no turn gives back what it has
        counted and reserved.
        """
        return Feature(self._admit, self._has_limits), Feature(self._reserve, self.of)

    def _has_limits(self, submission: Submission) -> bool:
        return self._limiter.has_limits(submission.principal)

    async def _admit(self, submission: Submission) -> None:
        admission = self._limiter.admission(submission.principal)
        self._by_turn[submission.own_turn] = admission
        submission.response_headers.append(
            lambda path: rate_headers(path, admission.quota_rests.values(), self._limiter.now())
        )
        submission.cleanup.push_async_callback(self._release, submission)
        await admission.count_request()

    async def _release(self, submission: Submission) -> None:
        admission = self._by_turn.pop(submission.own_turn)
        if not submission.may_be_stored:
            await admission.release()

    async def _reserve(self, submission: Submission) -> None:
        admission = self._by_turn[submission.own_turn]
        submission.entry = await admission.reserve_turn(submission.turn.turn, submission.entry)


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
