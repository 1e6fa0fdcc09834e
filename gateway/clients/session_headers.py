"""The session and the project of a request, where a client names them in a header instead of the body. Pure."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from tailrace.proto.errors import Refused

B = TypeVar("B", bound=msgspec.Struct)

# As OpenAI-compatible servers of Claude call them.
IN_HEADERS = {"session_id": "x-session-id", "project_id": "x-project-id"}


def with_headers(body: B, headers: Mapping[str, str]) -> B:
    """`body` with what its headers say; raises Refused when they say otherwise than it does."""
    given: dict[str, str] = {}
    for name, header in IN_HEADERS.items():
        value = headers.get(header)
        if value is not None and getattr(body, name) not in (None, value):
            raise Refused("request_invalid", f"`{name}` and the header {header} differ: send one of them")
        given |= {name: value} if value is not None else {}
    return msgspec.structs.replace(body, **given)
