"""The headers X-Session-ID and X-Project-ID, as alternatives to the body's `session_id` and `project_id`."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from tailrace.proto.errors import Refused

B = TypeVar("B", bound=msgspec.Struct)

# The names that OpenAI-compatible servers of Claude use.
HEADERS = {"session_id": "x-session-id", "project_id": "x-project-id"}


def apply_session_headers(body: B, headers: Mapping[str, str]) -> B:
    """Returns `body` with the ids that are in `headers`. Raises Refused when a header contradicts the body."""
    ids: dict[str, str] = {}
    for field, header in HEADERS.items():
        value = headers.get(header)
        if value is not None and getattr(body, field) not in (None, value):
            raise Refused("request_invalid", f"`{field}` and the header {header} differ: send one of them")
        ids |= {field: value} if value is not None else {}
    return msgspec.structs.replace(body, **ids)
