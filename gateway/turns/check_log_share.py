"""The tenant's share of the log as a feature of turn submission."""

from typing import NamedTuple

from tailrace.gateway.limits.storage_share import StorageShare
from tailrace.gateway.turns.submission import Feature, Submission, always


class LogShareFeatures(NamedTuple):
    """The two steps: before the entry is built, and after it was appended."""

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
