"""Every exception of anthropic and httpx2 becomes a BackendError with a code of the table."""

import re
from email.utils import formatdate
from typing import get_args

import anthropic
import httpx2
import msgspec
import pytest
import structlog.testing
from anthropic._error_classes import ERROR_CLASSES
from anthropic.types.shared.error_type import ErrorType
from hypothesis import given
from hypothesis import strategies as st

from tailrace.generators.backend_order import REPEATED_FAULTS
from tailrace.generators.backends.anthropic_api import backend_error
from tailrace.generators.backends.api_errors import (
    CODES_BY_STATUS,
    CODES_BY_TYPE,
    DETAILS_BYTES_MAX,
    KEY_REFUSED,
    OF_ACCOUNT,
    Reason,
    details_of_request,
    error_from_reason,
)
from tailrace.generators.backends.model_event import read_event
from tailrace.proto.errors import BACKEND_MESSAGE_CHARS_MAX, CODES, BackendError
from tailrace.proto.runtime.retry_after import parse_retry_after

NOW = 1_800_000_000.0
REQUEST = httpx2.Request("POST", "http://127.0.0.1/v1/messages")

# The classes of each code. A class of the libraries that is not here fails the test: decide, then add it.
CLASSES: dict[str, tuple[type[Exception], ...]] = {
    "backend_broken": (
        *(anthropic.AnthropicError, anthropic.APIError, anthropic.APIResponseValidationError),
        *(anthropic.APIWebhookValidationError, anthropic.ClientClosedRequestError),
        # Errors while the body of a response is read. Earlier errors are wrapped by the SDK in an APIConnectionError.
        *(httpx2.HTTPError, httpx2.RequestError, httpx2.TransportError, httpx2.NetworkError, httpx2.ReadError),
        *(httpx2.WriteError, httpx2.ConnectError, httpx2.CloseError, httpx2.ProxyError, httpx2.UnsupportedProtocol),
        *(httpx2.ProtocolError, httpx2.LocalProtocolError, httpx2.RemoteProtocolError, httpx2.SSEError),
        *(httpx2.DecodingError, httpx2.TooManyRedirects, httpx2.HTTPStatusError),
    ),
    # The cause of a timeout says more: see below.
    "backend_unreachable": (anthropic.APIConnectionError, anthropic.APITimeoutError),
    "backend_stalled": (
        *(anthropic.RequestTimeoutError, anthropic.GatewayTimeoutError, httpx2.TimeoutException),
        *(httpx2.ConnectTimeout, httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout),
    ),
    "backend_failed": (
        *(anthropic.RetryableError, anthropic.ConflictError, anthropic.InternalServerError),
        *(anthropic.HTTPNotImplementedError, anthropic.ServiceUnavailableError),
        *(anthropic.CMEKKeyUnreachableError, anthropic.CMEKContextUnavailableError),
    ),
    "backend_refused_key": (
        *(anthropic.CredentialsError, anthropic.IdentityTokenFileError, anthropic.WorkloadIdentityError),
        *(anthropic.AuthenticationError, anthropic.PaymentRequiredError, anthropic.PermissionDeniedError),
        *(anthropic.LinkedOrganizationBillingUnavailableError, anthropic.LinkedOrganizationSpendLimitReachedError),
        *(anthropic.ContractSpendLimitReachedError, anthropic.EnforcedSpendLimitReachedError),
        *(anthropic.SandboxEgressRestrictedError, anthropic.ClaudeCodeKeyCreatorNotMemberError),
        *(anthropic.CMEKKeyDisabledError, anthropic.CMEKKeyNetworkBlockedError, anthropic.OrganizationOnHoldError),
        *(anthropic.OrganizationTypeNotSupportedError, anthropic.ParentOrganizationRequiredError),
        anthropic.WorkspaceHumanReviewDisabledError,
    ),
    "backend_refused_request": (
        *(anthropic.APIStatusError, anthropic.BadRequestError, anthropic.NotFoundError),
        *(anthropic.PreconditionFailedError, anthropic.ContentTooLargeError, anthropic.UnprocessableEntityError),
        *(anthropic.RequestHeaderFieldsTooLargeError, anthropic.RequestBodyTooLargeAfterDecodingError),
        *(anthropic.RequestBodyEncodingInvalidError, anthropic.RequestBodyEncodingUnsupportedError),
        anthropic.ClaudeCodeVersionTooOldError,
    ),
    "backend_rate_limited": (anthropic.RateLimitError, anthropic.RampLimitExceededError),
    "backend_overloaded": (anthropic.OverloadedError,),
}
MAPPED = {kind: code for code, kinds in CLASSES.items() for kind in kinds}
# Not mapped on purpose: they mean an error in this program.
PROGRAM_ERRORS = {
    *(httpx2.InvalidURL, httpx2.CookieConflict, httpx2.StreamError, httpx2.StreamConsumed, httpx2.StreamClosed),
    *(httpx2.ResponseNotRead, httpx2.RequestNotRead),
}


def new_error(kind: type[Exception]) -> Exception:
    """An exception of `kind` as the SDK would make it."""
    if issubclass(kind, anthropic.APIStatusError):
        status = getattr(kind, "status_code", None) or (500 if issubclass(kind, anthropic.InternalServerError) else 418)
        response = httpx2.Response(status, request=REQUEST)
        error_code = next((code for (_, code), named in ERROR_CLASSES.items() if named is kind), None)
        body = {"error": {"details": {"error_code": error_code}}} if error_code else None
        return kind("Error code", response=response, body=body)
    error = kind.__new__(kind)
    Exception.__init__(error, "secret answer")
    return error


def test_every_public_exception_of_the_libraries_is_mapped() -> None:
    """An exception of a new version must not reach the worker unmapped."""
    public = [value for library in (anthropic, httpx2) for value in vars(library).values()]
    errors = {value for value in public if isinstance(value, type) and issubclass(value, Exception)}
    assert errors - PROGRAM_ERRORS == set(MAPPED)


@pytest.mark.parametrize(("kind", "code"), MAPPED.items(), ids=lambda value: getattr(value, "__name__", None))
def test_an_exception_maps_to_its_code(kind: type[Exception], code: str) -> None:
    """The message has nothing of the answer."""
    error = backend_error(new_error(kind), NOW)
    assert error.code == code
    assert "secret" not in error.message


def test_every_code_is_in_the_table_that_decides_what_is_retried() -> None:
    """A misspelt code would raise while a failure is handled."""
    assert {*CLASSES, *CODES_BY_STATUS.values(), *CODES_BY_TYPE.values()} <= set(CODES)


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (httpx2.ConnectTimeout("x"), "backend_unreachable"),
        (httpx2.PoolTimeout("x"), "backend_unreachable"),
        (httpx2.ReadTimeout("x"), "backend_stalled"),
        (httpx2.ConnectError("x"), "backend_unreachable"),
        (httpx2.ProxyError("x"), "backend_unreachable"),
        (ValueError("x"), "backend_broken"),
        (None, "backend_unreachable"),
    ],
)
def test_a_connection_error_maps_by_its_cause(cause: Exception | None, code: str) -> None:
    """The SDK has two classes for refused, slow, silent and non-HTTP connections."""
    error = anthropic.APIConnectionError(request=REQUEST)
    error.__cause__ = cause
    assert backend_error(error, NOW).code == code


NO_MODEL = "the model's API does not know the model `claude-x`; GET /v1/models lists the models"
VERTEX = (
    "Publisher Model `projects/acme/locations/us-east5/publishers/anthropic/models/claude-x` was not found or your "
    "project does not have access to it. Please ensure you are using a valid model version."
)


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"error": {"type": "overloaded_error", "message": "Overloaded"}}, 200, "backend_overloaded", "Overloaded"),
        ({"error": {"type": "rate_limit_error", "message": "Slow"}}, 400, "backend_rate_limited", "Slow"),
        ({"error": {"type": "new_error", "message": "New"}}, 503, "backend_failed", "New"),
        (
            {"error": {"type": ["a"], "message": []}},
            400,
            "backend_refused_request",
            "the model answered with status 400",
        ),
        ({"error": "odd"}, 503, "backend_failed", "the model answered with status 503"),
        (None, 404, "backend_refused_request", "the model answered with status 404"),
        ({"error": {"type": "not_found_error", "message": "model: claude-x"}}, 404, "model_not_found", NO_MODEL),
        (
            {"error": {"type": "not_found_error", "message": "model: my/claude-x"}},
            404,
            "model_not_found",
            NO_MODEL.replace("claude-x", "my/claude-x"),
        ),
        ({"error": {"code": 404, "message": VERTEX, "status": "NOT_FOUND"}}, 404, "model_not_found", NO_MODEL),
        ({"error": {"type": "not_found_error", "message": "File x"}}, 404, "backend_refused_request", "File x"),
        (
            {"error": {"type": "invalid_request_error", "message": "model: Field required"}},
            400,
            "backend_refused_request",
            "model: Field required",
        ),
        (None, 302, "backend_broken", "the model answered with status 302"),
    ],
)
def test_a_status_error_maps_by_status_then_by_type(body: object, status: int, code: str, message: str) -> None:
    """The API's message is kept; an unknown type maps by the range of its status."""
    response = httpx2.Response(status, request=REQUEST)
    error = backend_error(anthropic.APIStatusError("x", response=response, body=body), NOW)
    assert (error.code, error.message) == (code, message)


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": formatdate(NOW + 30)}, 30.0),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "Jan 99 24:61:61 0 99999999999999999999 -1"}, None),
    ],
)
def test_retry_after_is_parsed_in_all_forms(headers: dict[str, str], wait_s: float | None) -> None:
    """Milliseconds, seconds or a date (RFC 9110, 10.2.3); anything else counts as absent."""
    assert parse_retry_after(headers, NOW) == wait_s


@given(st.text())
def test_any_retry_after_is_parsed_or_ignored(text: str) -> None:
    wait_s = parse_retry_after({"retry-after": text}, NOW)
    assert wait_s is None or wait_s >= 0


def refused_by_status_and_by_event(status: int, type_: str, message: str) -> tuple[BackendError, BackendError]:
    """The same error of the API as a response and as an event of the stream."""
    body = {"type": "error", "error": {"type": type_, "message": message}}
    error = anthropic.APIStatusError("no", response=httpx2.Response(status, request=REQUEST), body=body)
    return backend_error(error, NOW), error_from_reason(Reason(type_, message))


def test_the_apis_error_about_the_operators_key_is_logged_and_not_shown() -> None:
    """Tenants see the error of a turn: it must not name the operator's key, account or organisation."""
    secret = "invalid x-api-key sk-ant-…abcd of organisation acme"
    with structlog.testing.capture_logs() as logged:
        errors = refused_by_status_and_by_event(401, "authentication_error", secret)
    assert {(error.code, error.message) for error in errors} == {("backend_refused_key", KEY_REFUSED)}
    assert [line["message"] for line in logged] == [secret, secret]


NO_CREDIT = (
    "Your credit balance is too low to access the Anthropic API. "
    "Please go to Plans & Billing to upgrade or purchase credits."
)
OF_OPERATOR = [
    NO_CREDIT,
    NO_CREDIT.replace("Anthropic", "Claude"),
    "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    "This organization has been disabled.",
]


@pytest.mark.rule("R134")
@pytest.mark.parametrize("message", OF_OPERATOR)
def test_a_400_about_the_operators_account_is_a_refused_key(message: str) -> None:
    """It has no error code: its whole message decides. A client does not see it."""
    for error in refused_by_status_and_by_event(400, "invalid_request_error", message):
        assert (error.code, error.message, error.details) == ("backend_refused_key", KEY_REFUSED, None)


@pytest.mark.rule("R134")
@pytest.mark.parametrize(
    "quoting",
    [
        "tools.0.name: '{}' does not match the pattern",
        "{} ",
        "{}\n",
        " {}",
        "model: {}",
        "messages.0.content.0.type: Input tag '{}' found using 'type' does not match any of the expected tags",
    ],
)
def test_a_400_that_quotes_such_a_message_is_about_the_request(quoting: str) -> None:
    """A tenant must not be able to make the operator's key look refused."""
    for one in OF_OPERATOR:
        for error in refused_by_status_and_by_event(400, "invalid_request_error", quoting.format(one)):
            assert error.code == "backend_refused_request"


# The SDK's error codes of other routes than those that generators call, and of retryable failures of the account.
OTHER_CODES = {
    *("change_outcome_unknown", "claude_code_version_too_old", "cmek_context_unavailable", "cmek_key_unreachable"),
    *("concurrent_membership_change", "external_key_not_found", "external_key_provider_mismatch"),
    *("gcp_project_controlled_by_another_organization", "gcp_project_not_verified", "org_member_limit_exceeded"),
    *("ramp_limit_exceeded", "rbac_role_not_found", "skill_read_blocked_undecryptable", "storage_in_use"),
    *("storage_not_approved", "storage_quota_exceeded", "unsupported_charset"),
}


def general_codes() -> list[tuple[int, str]]:
    """Returns the status and the code of each error of the SDK that is not of a single resource."""
    return [
        (status, code)
        for (status, code), kind in ERROR_CLASSES.items()
        if code and re.fullmatch(r"anthropic(\.types\.\w+)?", kind.__module__)
    ]


@pytest.mark.rule("R134")
def test_each_error_code_of_the_sdk_is_for_the_client_or_for_the_operator() -> None:
    """Decide about a code of a new SDK, then add it."""
    codes = {code for _, code in general_codes()}
    for_client = {code for code in codes if details_of_request({"error_code": code})}
    assert not for_client & (OF_ACCOUNT | OTHER_CODES)
    assert for_client | OF_ACCOUNT | OTHER_CODES == codes


@pytest.mark.rule("R134")
@pytest.mark.parametrize(("status", "error_code"), general_codes())
def test_what_an_error_says_about_the_account_is_not_shown(status: int, error_code: str) -> None:
    """In a response of the API and in an event of the stream: neither the message nor the details."""
    details = {"error_code": error_code, "paths": ["messages.0.content.1"]}
    error = {"type": "invalid_request_error", "message": "organisation acme is on hold", "details": details}
    response = httpx2.Response(status, request=REQUEST)
    failed = backend_error(anthropic.APIStatusError("no", response=response, body={"error": error}), NOW)
    with pytest.raises(BackendError) as event:
        read_event(msgspec.json.encode({"type": "error", "error": error}))
    if error_code in OF_ACCOUNT:
        shown = {(one.code, one.message, one.details) for one in (failed, event.value)}
        assert shown == {("backend_refused_key", KEY_REFUSED, None)}
    else:
        expected = None if error_code in OTHER_CODES else details
        assert failed.details == event.value.details == expected


@pytest.mark.rule("R134")
@pytest.mark.parametrize("odd", [None, 5, [], "x", {}, {"error_code": 5}, {"error_code": "compaction_" + "x" * 5000}])
def test_odd_details_are_left_out(odd: object) -> None:
    assert details_of_request(odd) is None


def test_only_the_code_is_left_of_large_details() -> None:
    """They go into the turn's `end`, which must fit into the log."""
    details = {"error_code": "image_dimensions_too_large", "paths": ["messages.0.content.1"] * DETAILS_BYTES_MAX}
    assert details_of_request(details) == {"error_code": "image_dimensions_too_large"}


@pytest.mark.rule("R118")
def test_an_error_event_of_an_unknown_type_is_repeated_once_only() -> None:
    """Whether repeating helps is not known, and each call is paid for."""
    error = error_from_reason(Reason("new_error", "New"))
    assert (error.code, error.message) == ("backend_unreadable", "the model sent an error of an unknown type: New")
    assert error.code in REPEATED_FAULTS


@pytest.mark.parametrize("type_", get_args(ErrorType))
def test_each_error_type_of_the_sdk_has_a_code(type_: str) -> None:
    assert error_from_reason(Reason(type_)).code != "backend_unreadable"


def test_a_long_error_message_is_cut() -> None:
    """It goes into the turn's `end`, which must fit into the log."""
    long = "no " * 4_000_000
    cut = long[:BACKEND_MESSAGE_CHARS_MAX]
    for error in refused_by_status_and_by_event(400, "invalid_request_error", long):
        assert (error.code, error.message) == ("backend_refused_request", cut)


@pytest.mark.rule("R6")
def test_an_error_event_without_a_message_has_the_code_of_its_type() -> None:
    with pytest.raises(BackendError, match="the model failed") as failed:
        read_event(b'{"type":"error","error":{"type":"overloaded_error","message":null}}')
    assert failed.value.code == "backend_overloaded"


@pytest.mark.parametrize("data", [b'{"type":"\xdc"}', b'{"type":"error","error":{"message":"\xdcberlastet"}}'])
def test_an_event_with_invalid_utf8_breaks_the_answer(data: bytes) -> None:
    """From a proxy that writes Latin-1, for example."""
    with pytest.raises(BackendError, match="cannot be read"):
        read_event(data)
