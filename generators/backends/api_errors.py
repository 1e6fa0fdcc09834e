"""Maps the errors of Anthropic's API (status, type, Retry-After) to our codes. Needs no SDK."""

import re
from typing import Any

import msgspec
import structlog

from tailrace.proto.errors import BackendError

logger = structlog.get_logger()

# Anthropic's docs, "API errors". Within a stream only the type tells errors apart: the status is always 200.
CODES_BY_TYPE = {
    "rate_limit_error": "backend_rate_limited",
    "overloaded_error": "backend_overloaded",
    "api_error": "backend_failed",
    "timeout_error": "backend_stalled",
    "conflict_error": "backend_failed",
    "authentication_error": "backend_refused_key",
    "permission_error": "backend_refused_key",
    "billing_error": "backend_refused_key",
    "invalid_request_error": "backend_refused_request",
    "not_found_error": "backend_refused_request",
    "request_too_large": "backend_refused_request",
    "memory_path_conflict_error": "backend_refused_request",
    "memory_precondition_failed_error": "backend_refused_request",
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


# The error codes (`error.details.error_code`) that are about the request, and that the client may see. The details of
# all other codes may be about the operator's account.
ABOUT_REQUEST = ("available_tools_", "compaction_", "file_", "image_", "request_body_", "thread_", "tool_")
# The codes about the permissions of the operator's key, organisation or workspace, whatever their status.
OF_ACCOUNT = frozenset(
    {
        "claude_code_key_creator_not_member",
        "cmek_key_disabled",
        "cmek_key_network_blocked",
        "cmek_not_approved",
        "contract_spend_limit_reached",
        "enforced_spend_limit_reached",
        "linked_organization_billing_unavailable",
        "linked_organization_spend_limit_reached",
        "organization_not_enrolled_in_beta",
        "organization_on_hold",
        "organization_type_not_supported",
        "parent_organization_required",
        "region_not_supported",
        "sandbox_egress_restricted",
        "user_profile_billing_not_authorized",
        "user_profile_not_billable",
        "user_profile_not_found",
        "user_profile_required",
        "workspace_human_review_disabled",
    }
)
# Whole messages of 400 `invalid_request_error` about the operator's account, which have no error code. Never a part of
# a message: other messages quote the request, with which a client could make the key look refused. Sources: issues
# 66314, 38035, 55998 and 72457 of anthropics/claude-code, 618 of anthropics/anthropic-sdk-typescript.
ABOUT_ACCOUNT = re.compile(
    r"Your credit balance is too low to access the (Anthropic|Claude) API\. "
    r"Please go to Plans & Billing to upgrade or purchase credits\.|"
    r"You have reached your specified (workspace )?API usage limits\. "
    r"You will regain access on [0-9]{4}-[0-9]{2}-[0-9]{2} at [0-9]{2}:[0-9]{2} UTC\.|"
    r"This organization has been disabled\."
)
# Whole messages of a 404 for the name of a model, of Anthropic's API, Vertex AI and Claude Code. Other things that
# are not found, such as files, have other messages.
UNKNOWN_MODEL = re.compile(
    r"(?:model: |Publisher [Mm]odel `\S{1,300}/models/|There's an issue with the selected model \()"
    r"([^\s`)]{1,200})(?:` (?:was|is) not found .*|\)\. .*)?"
)
UNKNOWN = "the model's API does not know the model `{name}`; GET /v1/models lists the models"
DETAILS_BYTES_MAX = 4096
# The refusal of thinking whose prefix has changed (PROTOCOL R140). Source: Anthropic's page "Fix a thinking block bound
# to a different conversation". Only the beginning is compared: the API's messages may quote the client further on.
PREFIX_MISMATCH = re.compile(
    r"messages\.\d+\.content\.\d+: Invalid `(signature|data)` in `(redacted_)?thinking` block\. "
    r"The block is bound to a different conversation\b"
)

KEY_REFUSED = "the server's key was refused by the model's API"


class Reason(msgspec.Struct, frozen=True):
    """The `error` object of an error response or an `error` event."""

    type: str = ""
    message: str | None = None
    details: Any = None

    @property
    def error_code(self) -> str | None:
        """The cause of the error, more exact than its type; None if the API does not name it."""
        return error_code_of(self.details)


class ErrorEvent(msgspec.Struct, frozen=True):
    error: Reason = Reason()


def error_from_reason(reason: Reason) -> BackendError:
    """Returns the error for an `error` object of Anthropic's API.

    An unknown type is `backend_unreadable`, which is repeated once, because that may help.
    """
    code = "backend_refused_key" if reason.error_code in OF_ACCOUNT else CODES_BY_TYPE.get(reason.type)
    message = reason.message or "the model failed"
    if code is None:
        return api_error("backend_unreadable", f"the model sent an error of an unknown type: {message}")
    return api_error(code, message, details=reason.details)


def api_error(code: str, message: str, retry_after_s: float | None = None, *, details: object = None) -> BackendError:
    """Returns the error with the API's message, and with its details if they are about the request.

    The API's messages about the server's key are only logged.
    """
    if code == "backend_refused_request" and ABOUT_ACCOUNT.fullmatch(message):
        code = "backend_refused_key"
    elif code == "backend_refused_request" and (unknown := UNKNOWN_MODEL.fullmatch(message)):
        code, message = "model_not_found", UNKNOWN.format(name=unknown[1])
    error = BackendError(code, message, retry_after_s=retry_after_s, details=details_of_request(details))
    if code != "backend_refused_key":
        return error
    logger.error("the model's API refused the server's key", message=error.message)
    return BackendError(code, KEY_REFUSED, retry_after_s=retry_after_s)


def is_prefix_mismatch(error: BackendError) -> bool:
    """Returns whether the API has refused thinking because the prompt before it has changed."""
    return error.code == "backend_refused_request" and PREFIX_MISMATCH.match(error.message) is not None


def error_code_of(details: object) -> str | None:
    """Returns the `error_code` of an error's `details`, None without one."""
    match details:
        case {"error_code": str(code)}:
            return code
        case _:
            return None


def details_of_request(details: object) -> dict[str, Any] | None:
    """Returns the `details` of an error for the client; None if they may be about the operator's account.

    Of details that are too large for the end of a turn, only the code is returned.
    """
    code = error_code_of(details)
    if code is None or not code.startswith(ABOUT_REQUEST) or not isinstance(details, dict):
        return None
    if len(code) > DETAILS_BYTES_MAX // 2:
        return None
    return details if len(msgspec.json.encode(details)) <= DETAILS_BYTES_MAX else {"error_code": code}


def code_for(status: int, kind: str | None, error_code: str | None = None) -> str:
    """Returns the code for an API error's status, type and error code. The status decides if it is specific."""
    if error_code in OF_ACCOUNT:
        return "backend_refused_key"
    return CODES_BY_STATUS.get(status) or CODES_BY_TYPE.get(kind or "") or _code_for_range(status)


def _code_for_range(status: int) -> str:
    if status >= 500:
        return "backend_failed"
    return "backend_refused_request" if status >= 400 else "backend_broken"
