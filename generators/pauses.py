"""Pauses of the model (`pause_turn`) that a generator continues itself (PROTOCOL R117). Pure.

The end of a paused message is stored as a hidden event: readers get one answer, and the usage counts.
"""

import msgspec

from tailrace.generators.backends.model_event import ModelEvent
from tailrace.proto import events
from tailrace.proto.fold import Turn

# The pause after so many is shown to readers, and the turn completes with the stop reason `pause_turn`.
PAUSES_MAX = 10


def hide_pause(event: ModelEvent, turn: Turn) -> ModelEvent:
    """Returns the `message_delta` of a model's answer, hidden if it is a pause that a generator continues.

    `turn` is the fold before this answer.
    """
    assert turn.request is not None  # noqa: S101  # the fold of a turn that is run has one
    match event.event:
        case events.MessageDelta(events.StopReason(events.PAUSE)):
            is_hidden = turn.request.on_pause == "continue" and len(turn.pauses) < PAUSES_MAX
            return msgspec.structs.replace(event, is_hidden=is_hidden)
    return event
