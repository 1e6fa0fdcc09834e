"""The queue as a feature of turn submission: refuses a turn if the queue is full, or adds its position."""

from typing import NamedTuple

import msgspec

from tailrace.gateway.limits.turn_queue import TurnQueue
from tailrace.gateway.turns.submission import Feature, Submission, TurnSubmission, always


class QueueFeatures(NamedTuple):
    """The two steps: before the entry is built, and after."""

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
