"""Headers for fields of Tailrace that the body of an SDK's request may lack: session, project, `on_pause`."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from tailrace.proto.entries import OnPause
from tailrace.proto.errors import Refused

B = TypeVar("B", bound=msgspec.Struct)

# The names that OpenAI-compatible servers of Claude use.
HEADERS = {"session_id": "x-session-id", "project_id": "x-project-id"}
ON_PAUSE = "tailrace-on-pause"
# opencode sends its own session's id here and in X-Session-ID, in every request to every server, for cache routing.
# That session is not a conversation: it also contains the request for a title, sent with the first question.
AFFINITY = "x-session-affinity"


def apply_session_headers(body: B, headers: Mapping[str, str]) -> B:
    """Returns `body` with the ids and `on_pause` of `headers`. Raises Refused when an id contradicts the body.

    X-Session-ID is ignored if X-Session-Affinity has the same value.
    """
    ids: dict[str, str] = {}
    for field, header in HEADERS.items():
        value = headers.get(header)
        if field == "session_id" and value == headers.get(AFFINITY):
            continue
        if value is not None and getattr(body, field) not in (None, value):
            raise Refused("request_invalid", f"`{field}` and the header {header} differ: send one of them")
        ids |= {field: value} if value is not None else {}
    if (on_pause := read_on_pause(headers)) is not None:
        ids["on_pause"] = on_pause
    return msgspec.structs.replace(body, **ids)


def read_on_pause(headers: Mapping[str, str]) -> OnPause | None:
    """Returns the value of the header Tailrace-On-Pause, None without it. Raises Refused for another value."""
    match headers.get(ON_PAUSE):
        case None:
            return None
        case "continue" | "return" as on_pause:
            return on_pause
    raise Refused("request_invalid", "the header Tailrace-On-Pause must be `continue` or `return`")
