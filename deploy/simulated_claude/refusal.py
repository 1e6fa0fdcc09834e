"""Error responses of Anthropic's API."""

from collections.abc import Mapping

import msgspec

# Anthropic's docs, "API errors": the status of each type.
STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "overloaded_error": 529,
}


class Refusal(Exception):
    """An invalid request; the app renders it. `type` is a key of STATUS."""

    def __init__(self, type_: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.type = type_
        self.message = message
        self.headers = dict(headers or {})

    @property
    def status(self) -> int:
        return STATUS[self.type]


def error_body(type_: str, message: str, request_id: str | None = None) -> bytes:
    """Returns `{"type":"error","error":{…}}`; an error in a stream has no request_id."""
    body: dict[str, object] = {"type": "error", "error": {"type": type_, "message": message}}
    if request_id is not None:
        body["request_id"] = request_id
    return msgspec.json.encode(body)
