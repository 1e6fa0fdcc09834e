"""The headers X-Session-ID and X-Project-ID, as alternatives to the body's `session_id` and `project_id`."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from tailrace.proto.errors import Refused

B = TypeVar("B", bound=msgspec.Struct)

# The names that OpenAI-compatible servers of Claude use.
HEADERS = {"session_id": "x-session-id", "project_id": "x-project-id"}
# opencode sends its own session's id in both headers, to every server and with every request, for routing to a cache.
# That session is not a conversation: it also contains the request for a title, sent with the first question.
AFFINITY = "x-session-affinity"


def apply_session_headers(body: B, headers: Mapping[str, str]) -> B:
    """Returns `body` with the ids that are in `headers`. Raises Refused when a header contradicts the body.

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
    return msgspec.structs.replace(body, **ids)
