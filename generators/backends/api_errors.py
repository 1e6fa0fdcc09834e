"""Maps the errors of Anthropic's API (status, type, Retry-After) to our codes. Needs no SDK."""

import msgspec
import structlog

from tailrace.proto.errors import BackendError

logger = structlog.get_logger()

# Anthropic's docs, "API errors". Within a stream only the type tells them apart: the status is always 200.
CODES_BY_TYPE = {
    "rate_limit_error": "backend_rate_limited",
    "overloaded_error": "backend_overloaded",
    "api_error": "backend_failed",
    "timeout_error": "backend_stalled",
    "authentication_error": "backend_refused_key",
    "permission_error": "backend_refused_key",
    "billing_error": "backend_refused_key",
    "invalid_request_error": "backend_refused_request",
    "not_found_error": "backend_refused_request",
    "request_too_large": "backend_refused_request",
}
CODES_BY_STATUS = {
    401: "backend_refused_key",
    402: "backend_refused_key",
    403: "backend_refused_key",
    408: "backend_stalled",
    409: "backend_failed",  # a conflict is temporary; the SDK also retries it
    429: "backend_rate_limited",
    499: "backend_broken",
    504: "backend_stalled",
    529: "backend_overloaded",
}


KEY_REFUSED = "the server's key was refused by the model's API"


class Reason(msgspec.Struct, frozen=True):
    """The `error` object of an error response or an `error` event."""

    type: str = ""
    message: str | None = None


class ErrorEvent(msgspec.Struct, frozen=True):
    error: Reason = Reason()


def error_from_reason(reason: Reason) -> BackendError:
    """Returns the error for an `error` object of Anthropic's API; `backend_failed` for an unknown type."""
    return api_error(CODES_BY_TYPE.get(reason.type, "backend_failed"), reason.message or "the model failed")


def api_error(code: str, message: str, retry_after_s: float | None = None) -> BackendError:
    """Returns the error with the API's message. What the API says about the server's key goes to the log only."""
    error = BackendError(code, message, retry_after_s=retry_after_s)
    if code != "backend_refused_key":
        return error
    logger.error("the model's API refused the server's key", message=error.message)
    return BackendError(code, KEY_REFUSED, retry_after_s=retry_after_s)


def code_for(status: int, kind: str | None) -> str:
    """Returns the code for an API error's status and type. The status decides where it is specific."""
    return CODES_BY_STATUS.get(status) or CODES_BY_TYPE.get(kind or "") or _code_for_range(status)


def _code_for_range(status: int) -> str:
    if status >= 500:
        return "backend_failed"
    return "backend_refused_request" if status >= 400 else "backend_broken"
