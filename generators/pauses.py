"""Pauses of the model (`pause_turn`) that a generator continues itself (PROTOCOL R117). Pure.

The end of a paused message is stored as a hidden event: readers get one answer, and the usage counts.
"""

import msgspec

from tailrace.generators.backends.model_event import ModelEvent, Sink
from tailrace.proto import events
from tailrace.proto.entries import Request
from tailrace.proto.fold import Turn

# The pause after these is shown to readers, and the turn completes with the stop reason `pause_turn`.
PAUSES_MAX = 10


def hide_pause(sink: Sink, request: Request, turn: Turn) -> Sink:
    """Returns a sink that hides the end of a paused message; `sink` itself if it is to be shown, or cannot come."""
    if request.on_pause != "continue" or len(turn.pauses) >= PAUSES_MAX or not may_pause(request):
        return sink

    def pass_on(event: ModelEvent) -> None:
        match event.event:
            case events.MessageDelta(events.StopReason(events.PAUSE)):
                event = msgspec.structs.replace(event, is_hidden=True)
        sink(event)

    return pass_on


def may_pause(request: Request) -> bool:
    """Returns whether the model may pause its answer: only while the API executes tools."""
    has_server_tools = any(tool.get("type", "custom") != "custom" for tool in request.tools or ())
    return has_server_tools or bool((request.options or {}).get("mcp_servers"))
