"""What an answer has cost while it is being said, and how it is made whole when that is as much as it may. Pure.

The text so far is kept, and to every reader it is an answer that was cut by a limit (PROTOCOL R41).
"""

import msgspec

from tailrace.proto import events
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn
from tailrace.proto.models import cost_nano_usd, find_model
from tailrace.proto.usage import CallUsage, estimate_usage

# Its output is not counted: what was said is estimated, as of every call that broke off (PROTOCOL R23).
CUT = msgspec.Raw(
    msgspec.json.encode(
        {"type": "message_delta", "delta": {"stop_reason": "max_cost", "stop_sequence": None}, "usage": {}}
    )
)


class CostMeter:
    """Follows one attempt, event by event as the log gets them; the fold of that log counts the same."""

    def __init__(self, request: Request, turn: Turn, *, is_raced: bool = False) -> None:
        """`turn` is the fold with the attempt in it. What one that `is_raced` was told may never come into the log."""
        self._is_read = is_raced or request.max_cost_nano_usd is not None
        self._most = request.max_cost_nano_usd
        self._model = find_model(request.model)
        self._before = sum(cost_nano_usd(self._model, call) for call in turn.calls_before) if self._model else 0
        self._usage = CallUsage()
        self._said_chars = 0

    @property
    def cost_nano_usd(self) -> int:
        """0 for a model without a price."""
        if self._model is None:
            return 0
        return self._before + cost_nano_usd(self._model, self.usage)

    @property
    def usage(self) -> CallUsage:
        """Of the attempt's call, as far as the model has told, and what that broke off is estimated to be."""
        return estimate_usage(self._usage, self._said_chars)

    @property
    def is_passed(self) -> bool:
        """Whether the call is to be closed."""
        return self._most is not None and self.cost_nano_usd >= self._most

    def add(self, raw: msgspec.Raw, left_out: int = 0) -> None:
        if not self._is_read:
            return
        self._said_chars += left_out
        match events.decode(raw):
            case events.MessageStart(message):
                self._usage, self._said_chars = message.usage, 0
            case events.BlockStart(_, block):
                self._said_chars += len(str(block.get("text", "")))
            case events.BlockDelta(
                _, events.TextDelta(piece) | events.ThinkingDelta(piece) | events.InputJsonDelta(piece)
            ):
                self._said_chars += len(piece)
            case events.MessageDelta(_, usage):
                self._usage = usage.merge_into(self._usage)
                if usage.output_tokens is not None:
                    self._said_chars = 0
            case _:
                pass


def is_spent(turn: Turn) -> bool:
    """Whether a turn has cost what it may: no call is made for it any more."""
    if turn.request is None or turn.request.max_cost_nano_usd is None:
        return False
    model = find_model(turn.request.model)
    return (
        model is not None and sum(cost_nano_usd(model, call) for call in turn.calls) >= turn.request.max_cost_nano_usd
    )


def closing(turn: Turn) -> list[msgspec.Raw]:
    """The events that make a whole message of what was said."""
    still_open = [index for index, block in enumerate(turn.blocks) if not block.is_closed]
    return [*(events.encode(events.BlockStop(index)) for index in still_open), CUT]
