"""UsageMeter: counts the usage of model calls from their events (PROTOCOL R23). Pure."""

from collections.abc import Iterable
from typing import Any

import msgspec

from tailrace.proto import events
from tailrace.proto.usage import CallUsage, estimate_usage, read_count, utf8_bytes

NO_USAGE = CallUsage()
# More models than any chain of fallbacks has.
DECLINES_MAX = 100


class UsageMeter:
    """Counts the usage of the calls of an answer. A backend that executes tools makes several calls for one attempt.

    `ended` is the usage of each ended call. `reported` is the usage of the current call, as far as the model has
    reported it, and `unreported_bytes` is the number of bytes of text that the call has produced since then.
    """

    def __init__(
        self, ended: Iterable[CallUsage] = (), reported: CallUsage = NO_USAGE, unreported_bytes: int = 0
    ) -> None:
        self.ended = list(ended)
        self.reported = reported
        self.unreported_bytes = unreported_bytes
        self.has_estimated = False
        """Whether a call has ended before the model had reported all of its output."""

    @property
    def usage(self) -> CallUsage:
        """The usage of the current call: what the model has reported, plus an estimate for the text since then."""
        return estimate_usage(self.reported, self.unreported_bytes)

    @property
    def calls(self) -> list[CallUsage]:
        """The usage of each call, including the current one."""
        return [*self.ended, self.usage]

    def add(self, event: events.Event | events.UnknownEvent, left_out: int = 0) -> None:
        """Counts an event: the usage that it reports, or the bytes of its text.

        `left_out` is the number of bytes of text that the call has sent before the event and that are not stored.
        """
        self.unreported_bytes += left_out
        match event:
            case events.BlockDelta(
                _, events.TextDelta(piece) | events.ThinkingDelta(piece) | events.InputJsonDelta(piece)
            ):
                self.unreported_bytes += utf8_bytes(piece)
            case events.MessageStart(message):
                if self.reported != NO_USAGE or self.unreported_bytes:
                    # A further call of the same attempt: each has a price of its own.
                    self.close_call()
                self.reported, self.unreported_bytes = message.usage, 0
                self._note(model=message.model)
            case events.BlockStart(_, {"type": "fallback"} as block):
                self._note_fallback(block)
            case events.BlockStart(_, {"type": "web_search_tool_result", "content": list()}):
                # A search that has failed is free. The model's own count at the end of the call replaces this one.
                used = self.reported.server_tool_use if isinstance(self.reported.server_tool_use, dict) else {}
                used = used | {"web_search_requests": read_count(used.get("web_search_requests")) + 1}
                self.reported = msgspec.structs.replace(self.reported, server_tool_use=used)
            case events.BlockStart(_, block):
                self.unreported_bytes += utf8_bytes(events.opening_text(block)[0])
            case events.MessageDelta(stop, usage):
                self.reported = usage.merge_into(self.reported)
                if stop.stop_reason is not None:
                    self._note(refusal=_category(stop.stop_details) if stop.stop_reason == "refusal" else None)
                if usage.output_tokens is not None:
                    self.unreported_bytes = 0

    def _note(self, **fields: Any) -> None:
        """Sets fields of the current call's context."""
        context = msgspec.structs.replace(self.reported.context, **fields)
        self.reported = msgspec.structs.replace(self.reported, context=context)

    def _note_fallback(self, block: dict[str, Any]) -> None:
        """Notes that one model has refused and that another one answers, as Anthropic's block `fallback` says."""
        declines = self.reported.context.declines
        match block:
            case {"to": {"model": str(served_by)}}:
                self._note(served_by=served_by)
        match block:
            case {"from": {"model": str(model)}} if len(declines) < DECLINES_MAX:
                self._note(declines=(*declines, (model, _category(block.get("trigger")))))

    def close_call(self) -> None:
        """Moves the usage of the current call, complete or not, to `ended`, with unreported output estimated."""
        self.ended.append(self.usage)
        self.has_estimated |= self.unreported_bytes > 0
        self.reported, self.unreported_bytes = NO_USAGE, 0


def _category(refusal: object) -> str:
    """Returns the category of a refusal, "" if it has none."""
    match refusal:
        case {"category": str(category)}:
            return category
    return ""
