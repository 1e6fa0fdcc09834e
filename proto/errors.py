"""Errors that cross a process boundary or reach a client: the exception tree and the table of error codes.

    TailraceError
     +- SettingsInvalid            a setting is invalid: the process does not start
     +- AddressInUse               another program uses the port: the process may be started again
     +- Refused                    the request is rejected: `code` gives the reason
     +- SandboxFailed              the subprocess for a client's schema or template was too slow or crashed
     |   +- SandboxBusy            all subprocess slots were taken for too long: retry
     +- LogError                   NATS
     |   +- LogUnavailable         no answer from the log in time, or no stream: retry later
     |   +- LogFull                the stream's byte limit is reached; running turns have a reserve
     |   +- LogMisconfigured       a stream or consumer is missing or has the wrong configuration
     |   +- EntryTooLarge          payload and headers exceed the server's limit
     |   +- FenceLost              another writer owns the turn: stop at once, acknowledge nothing
     |   +- TurnUnknown            the log has no entry of that turn
     |   +- CursorUnknown          the cursor is not the sequence of an entry of that turn
     |   +- BlobUnknown            the blob does not exist or has expired
     +- StoreError                 the database
     |   +- StoreBusy              another program has locked it: retry soon
     |   +- StoreUnwritable        disk full, read-only or failing: acknowledge nothing until it is repaired
     |   +- StoreRefused           the database cannot store this row, now or later: write the other rows
     |   +- StoreCorrupt           damaged, missing or not a database: rebuild it from the log
     |   +- StoreTooNew            written by a newer version: do not touch it
     |   +- StoreNotShared         another persistence process uses another database: do not start
     |   +- StoreRolledBack        it lacks rows that were committed: restart, and record the log again
     +- WebhookFailed              no connection or no answer to a webhook this time: retry
     +- WebhookRefused             the URL of a webhook or its address is not allowed: never retry
     +- BackendError               the model call failed: `code` gives the reason and whether to retry

Each module that uses a foreign library catches its exceptions and raises one of these `from` the original.
"""

import re
from typing import Any, Literal

import msgspec

# A message about a field or a query parameter begins with its name in backquotes.
PARAM = re.compile(r"`([A-Za-z_][\w.\[\]-]{0,199})`")


class TailraceError(Exception):
    """Root of the tree. Never raised itself."""


class SettingsInvalid(TailraceError):
    """A setting is invalid. The message names the environment variable and its valid values."""


class AddressInUse(TailraceError):
    """Another program uses the port of a setting. It may end, so a supervisor starts the process again."""


class Refused(TailraceError):
    """A request that is rejected with `code`, a key of CODES. The message says what is wrong and what to do.

    `param` is the field or query parameter that is wrong, such as `messages[0].content`: by default the name with which
    the message begins, in backquotes; None if it begins otherwise. `may_repeat` is False if the client must not repeat
    the request by itself although the code is retryable: it might pay for a second answer. `details` are further fields
    that some SDKs read.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        may_repeat: bool = True,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        named = PARAM.match(message)
        self.param = param if named is None or param is not None else named[1]
        self.retry_after_s = retry_after_s
        self.may_repeat = may_repeat
        self.details = details


def not_found(noun: Literal["turn", "batch", "project", "file"]) -> Refused:
    """Returns the refusal of an unknown id. The same for another tenant's id, and for text that cannot be an id."""
    return Refused(f"{noun}_not_found", f"no {noun} has this id")


def cursor_invalid() -> Refused:
    """Returns the refusal of an `after` that is not the `next` of a page of the list."""
    return Refused(
        "cursor_invalid", "`after` is not a `next` of this list: send `next` unchanged, or leave `after` out"
    )


class SandboxFailed(TailraceError):
    """The subprocess that evaluates a client's schema or template was too slow or crashed. The message says which."""


class SandboxBusy(SandboxFailed):
    """No subprocess slot was free in time. The input was not evaluated; a later call may succeed."""


class LogError(TailraceError):
    """An error from NATS. `code` is the key of CODES that a client receives."""

    code = "log_unavailable"
    may_repeat = True


class LogUnavailable(LogError):
    """The log did not answer in time. `may_repeat`: see Refused."""

    def __init__(self, message: str, *, may_repeat: bool = True) -> None:
        super().__init__(message)
        self.may_repeat = may_repeat


class LogFull(LogError):
    """The byte limit of the stream or of the server's storage is reached."""

    code = "log_full"


class LogMisconfigured(LogError):
    """A stream or consumer is missing or has the wrong configuration. The message names the command to run."""


class EntryTooLarge(LogError):
    """Payload and headers together exceed the server's limit."""

    code = "body_too_large"


class FenceLost(LogError):
    """Another writer has appended to the turn. The caller must stop writing the turn at once."""


class TurnUnknown(LogError):
    """The log has no entry of the turn."""

    code = "turn_not_found"


class CursorUnknown(LogError):
    """The cursor is not the sequence of an entry of the turn."""

    code = "cursor_invalid"


class BlobUnknown(LogError):
    """The tenant has no such blob, or it has expired."""

    code = "blob_not_found"


class StoreError(TailraceError):
    """An error from the database. Clients receive `persistence_unavailable`."""


class StoreBusy(StoreError):
    """Another program has held the database's lock for longer than `busy_timeout_s`."""


class StoreUnwritable(StoreError):
    """The database or its disk is full, read-only or failing. An operator must repair it; the log keeps the turns."""


class StoreRefused(StoreError):
    """The database cannot store a value: an integer beyond 64 bits, text that is not UTF-8. Nothing was written."""


class StoreCorrupt(StoreError):
    """The file is damaged, missing or not a database: it is moved aside, and a new database is built from the log."""


class StoreTooNew(StoreError):
    """A newer version has migrated the database. This version does not understand its schema."""


class StoreNotShared(StoreError):
    """Another persistence process uses another database. Each would record a part of the turns."""


class StoreRolledBack(StoreError):
    """The database lacks rows that this process has committed: it was restored, or a failover has lost them."""


class WebhookFailed(TailraceError):
    """No connection, or no answer in time. A retry may succeed. Clients never receive this error."""


class WebhookRefused(TailraceError):
    """The webhook's URL, or the address that it resolves to, is not allowed. Clients never receive this error."""


# A backend's error message may echo the whole request. The log refuses an `end` entry of that size, and without an
# `end` the turn would be attempted again and again.
BACKEND_MESSAGE_CHARS_MAX = 2000


class BackendError(TailraceError):
    """The model call failed. `code` is a key of CODES, which says whether to retry.

    `retry_after_s` is the delay that the backend asked for, or None. `reason` says why there is no connection, with
    names of hosts, for the operator; users see only `message`. `obstacle` names the cause in a few words without
    hosts, if the call was not sent and a later call may connect. `details` are the API's own about the request, by
    which Anthropic's SDKs choose the class of the error.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retry_after_s: float | None = None,
        reason: str = "",
        obstacle: str = "",
        details: dict[str, Any] | None = None,
    ) -> None:
        self.message = message[:BACKEND_MESSAGE_CHARS_MAX]
        super().__init__(self.message)
        self.code = code
        self.retry_after_s = retry_after_s
        self.reason = reason
        self.obstacle = obstacle
        self.details = details

    @property
    def log_fields(self) -> dict[str, str]:
        """The fields of a log line about this error: `code`, and `reason` if there is one."""
        return {"code": self.code, **({"reason": self.reason} if self.reason else {})}


class Code(msgspec.Struct, frozen=True):
    """A row of the error table: HTTP status, Anthropic's error type, and the texts of `tailrace explain`."""

    status: int
    type: str
    meaning: str
    advice: str
    is_retryable: bool = False
    """Whether the same request may succeed later."""


# The types are Anthropic's (docs: "API errors"), so that clients that handle Anthropic's errors handle these too.
INVALID = "invalid_request_error"
AUTHENTICATION = "authentication_error"
BILLING = "billing_error"
PERMISSION = "permission_error"
NOT_FOUND = "not_found_error"
TOO_LARGE = "request_too_large"
RATE_LIMIT = "rate_limit_error"
API = "api_error"
TIMEOUT = "timeout_error"
OVERLOADED = "overloaded_error"

CODES: dict[str, Code] = {
    # Rejected requests.
    "http_invalid": Code(
        400,
        INVALID,
        "The request violates HTTP (RFC 9112): a malformed request line, no or two Host headers, an unknown "
        "transfer coding.",
        "Use a standard HTTP client, or fix the proxy in front.",
    ),
    "json_invalid": Code(
        400,
        INVALID,
        "The body is not JSON (RFC 8259), or is nested too deeply.",
        "Send valid JSON in UTF-8.",
    ),
    "request_invalid": Code(
        400,
        INVALID,
        "A field, header or query parameter is missing, unknown, sent twice, or has a value that is not allowed.",
        "Change what the message names; /docs describes each field.",
    ),
    "model_unknown": Code(
        400,
        INVALID,
        "No model has this name.",
        "Choose a model from GET /v1/models.",
    ),
    "price_unknown": Code(
        400,
        INVALID,
        "The price of the model is unknown, so `max_cost` or a budget cannot be enforced.",
        "Choose a model whose price GET /v1/models/capabilities lists, or add its price to TAILRACE_MODELS_FILE.",
    ),
    "schema_invalid": Code(
        400,
        INVALID,
        "The JSON Schema is invalid, too large, or takes too long to evaluate.",
        "Fix or simplify the schema; the message says what is wrong with it.",
    ),
    "prompt_invalid": Code(
        400,
        INVALID,
        "The prompt template cannot be rendered with these variables.",
        "Send the variables that GET /v1/prompts lists.",
    ),
    "cursor_invalid": Code(
        400,
        INVALID,
        "The cursor is not an event id of this turn, or not the `next` of this list.",
        "Send the cursor back exactly as you received it, or start without one.",
    ),
    "cursor_mismatch": Code(
        400,
        INVALID,
        "The `Last-Event-ID` of a POST is not an event id of an answer to the same body.",
        "Repeat the POST with the same body and the last `id:` that you received, or send neither "
        "`Last-Event-ID` nor `after` to start a new turn.",
    ),
    "dialect_unknown": Code(
        400,
        INVALID,
        "No event format has this name.",
        "Choose one of the formats that the message lists.",
    ),
    "idempotency_key_invalid": Code(
        400,
        INVALID,
        "The Idempotency-Key header is empty, too long, repeated, or not allowed on this route.",
        "Send one key of 1 to 200 visible ASCII characters, such as a UUID.",
    ),
    "preflight_refused": Code(
        400,
        INVALID,
        "The CORS preflight asks for an origin, method or header that is not allowed.",
        "Add the page's origin to TAILRACE_ORIGINS.",
    ),
    "credential_invalid": Code(
        401,
        AUTHENTICATION,
        "The credential is missing, unknown, expired or revoked.",
        "Send a valid key as `Authorization: Bearer KEY` or `x-api-key: KEY`.",
    ),
    # 402 and not 429: clients repeat a request after a 429 by themselves, and a budget does not renew within seconds.
    "budget_exceeded": Code(
        402,
        BILLING,
        "The turn may cost more than the rest of the day's or month's budget.",
        "Wait until the budget renews, send a smaller `max_tokens` or `max_cost`, or raise the limit.",
    ),
    "scope_missing": Code(
        403,
        PERMISSION,
        "The credential lacks the scope that this route needs.",
        "Use a credential with the scope that the message names.",
    ),
    "host_refused": Code(
        403,
        PERMISSION,
        "The Host header names a host that this server does not serve.",
        "Add the host to TAILRACE_HOSTS.",
    ),
    "origin_refused": Code(
        403,
        PERMISSION,
        "A web page of another origin sent the request from a browser.",
        "Add the page's origin to TAILRACE_ORIGINS, or send the request from a server. Only a page of the gateway's "
        "own origin can log in.",
    ),
    "route_not_found": Code(
        404,
        NOT_FOUND,
        "No route has this path.",
        "GET / lists the routes.",
    ),
    "turn_not_found": Code(
        404,
        NOT_FOUND,
        "The turn does not exist, was deleted, or belongs to another tenant.",
        "Check the turn's id and the credential.",
    ),
    "batch_not_found": Code(
        404,
        NOT_FOUND,
        "The batch does not exist, was deleted, or belongs to another tenant.",
        "Check the batch's id and the credential.",
    ),
    "call_not_found": Code(
        404,
        NOT_FOUND,
        "The session waits for no tool call of this id: it is unknown, or the conversation has gone on.",
        "Read the calls that wait: GET /v1/sessions/{session}/calls.",
    ),
    "session_not_found": Code(
        404,
        NOT_FOUND,
        "The session does not exist, was deleted, or belongs to another tenant.",
        "Check the session's id. POST a turn without a session, or with `create_session`, to start a new one.",
    ),
    "project_not_found": Code(
        404,
        NOT_FOUND,
        "The project does not exist, was deleted, or belongs to another tenant.",
        "Check the project's id and the credential.",
    ),
    "key_not_found": Code(
        404,
        NOT_FOUND,
        "The API key does not exist, or is revoked or expired.",
        "List the keys: GET /v1/admin/keys.",
    ),
    "parent_not_found": Code(
        404,
        NOT_FOUND,
        "The turn to continue from does not exist in this session, or was deleted.",
        "Send the id of an existing turn as the parent, or none.",
    ),
    "model_not_found": Code(
        404,
        NOT_FOUND,
        "No model has the id in the path.",
        "GET /v1/models lists the models.",
    ),
    "blob_not_found": Code(
        404,
        NOT_FOUND,
        "The blob does not exist or has expired.",
        "Send the original content again with the request.",
    ),
    "file_not_found": Code(
        404,
        NOT_FOUND,
        "The uploaded file does not exist, was deleted, has expired, or belongs to another tenant.",
        "Upload it again.",
    ),
    "prompt_not_found": Code(
        404,
        NOT_FOUND,
        "No prompt template has this name.",
        "GET /v1/prompts lists the templates.",
    ),
    "method_not_allowed": Code(
        405,
        INVALID,
        "The route does not support this method.",
        "Use a method of the Allow header.",
    ),
    "headers_timeout": Code(
        408,
        INVALID,
        "The request's headers did not arrive in time.",
        "Send the request again; check the network.",
        is_retryable=True,
    ),
    "body_timeout": Code(
        408,
        INVALID,
        "The request's body did not arrive in time.",
        "Send the request again; check the network.",
        is_retryable=True,
    ),
    "session_busy": Code(
        409,
        INVALID,
        "The turn to continue from, or a turn to be deleted, is still running.",
        "Wait for its end, cancel it, continue from another turn (`parent`, or `previous_response_id` in "
        "`/v1/responses`), or set `on_busy`.",
    ),
    "call_decided": Code(
        409,
        INVALID,
        "The tool call has another decision already. The first one counts.",
        "Read the decision: GET /v1/sessions/{session}/calls.",
    ),
    "session_exists": Code(
        409,
        INVALID,
        "A session of this name exists.",
        "Choose another name, or use the existing session.",
    ),
    "project_exists": Code(
        409,
        INVALID,
        "A project of this id exists.",
        "Choose another id, or use the existing project.",
    ),
    "last_admin_key": Code(
        409,
        INVALID,
        "No other key with the scope `admin` is valid for another day.",
        "Create or rotate a key with this scope first.",
    ),
    "key_replaced": Code(
        409,
        INVALID,
        "The key has ended, or another key replaces it.",
        "Use or rotate the key that replaces it: see `replaced_by` in `GET /v1/admin/keys`.",
    ),
    "limits_changed": Code(
        409,
        INVALID,
        "The limits of the tenant are not those that the request expects.",
        "Read the limits, and repeat the change.",
    ),
    # 410 and not 409: clients repeat a request after a 409 by themselves, and this answer will never exist.
    "turn_cancelled": Code(
        410,
        INVALID,
        "The turn was cancelled before it had a complete answer.",
        "GET /v1/turns/{turn} returns the text so far; POST a new turn for a new answer.",
    ),
    "blob_expired": Code(
        410,
        INVALID,
        "A picture, document or long text of the conversation has expired.",
        "Send the messages with their full content again.",
    ),
    "body_too_large": Code(
        413,
        TOO_LARGE,
        "The body, one of its parts, or the conversation is larger than the limit in the message.",
        "Send less, or split the request.",
    ),
    "content_type_unsupported": Code(
        415,
        INVALID,
        "The body is not JSON, or is compressed.",
        "Send it uncompressed with `Content-Type: application/json`.",
    ),
    "idempotency_key_reused": Code(
        422,
        INVALID,
        "The Idempotency-Key was used with another body.",
        "Use a new key for a new request.",
    ),
    "rate_limited": Code(
        429,
        RATE_LIMIT,
        "The key or tenant has used up its requests, tokens or bytes of this period, or too many of its searches wait.",
        "Retry after the seconds in Retry-After.",
        is_retryable=True,
    ),
    "too_many_turns": Code(
        429,
        RATE_LIMIT,
        "The key or tenant has reached its limit of running turns.",
        "Wait for a turn to end, then retry.",
        is_retryable=True,
    ),
    "too_many_streams": Code(
        429,
        RATE_LIMIT,
        "The key, tenant or client address has reached its limit of open streams.",
        "Close a stream, then retry.",
        is_retryable=True,
    ),
    "headers_too_large": Code(
        431,
        INVALID,
        "The request has too many headers, or too many bytes of them.",
        "Send fewer or smaller headers; check cookies.",
    ),
    "internal": Code(
        500,
        API,
        "A bug in Tailrace (its logs have the traceback), or a turn that left the log before it ended.",
        "Report it with the response's `request-id`.",
    ),
    "log_unavailable": Code(
        503,
        API,
        "NATS does not answer.",
        "Retry after Retry-After. Operator: check nats-server.",
        is_retryable=True,
    ),
    "log_full": Code(
        503,
        OVERLOADED,
        "The log's storage limit is reached. Running turns continue; new ones are rejected.",
        "Retry later. Operator: see RUNBOOK.md.",
        is_retryable=True,
    ),
    "persistence_unavailable": Code(
        503,
        API,
        "The history service or its database does not answer.",
        "Retry after Retry-After. Operator: check the persistence process.",
        is_retryable=True,
    ),
    "generators_unavailable": Code(
        503,
        API,
        "No generator answers.",
        "Retry after Retry-After. Operator: start a generator.",
        is_retryable=True,
    ),
    "jwt_keys_unavailable": Code(
        503,
        API,
        "The gateway does not know the key of the JWT, and cannot read the issuer's keys at the moment.",
        "Retry after Retry-After. Operator: check TAILRACE_JWT_KEYS, and the issuer's server.",
        is_retryable=True,
    ),
    "queue_full": Code(
        503,
        OVERLOADED,
        "Too many turns wait for a generator before this one (TAILRACE_QUEUE_MAX).",
        "Retry after Retry-After. Operator: add generators, or raise TAILRACE_CONCURRENCY.",
        is_retryable=True,
    ),
    "draining": Code(
        503,
        OVERLOADED,
        "This gateway is shutting down.",
        "Retry at once; another gateway answers.",
        is_retryable=True,
    ),
    "server_busy": Code(
        503,
        OVERLOADED,
        "The gateway has no free stream, no memory for another large body, or no free worker for a schema or template.",
        "Retry after Retry-After. Operator: if it lasts for minutes, add a gateway.",
        is_retryable=True,
    ),
    # Failed turns: the model's side.
    "backend_rate_limited": Code(
        429,
        RATE_LIMIT,
        "The model provider's rate limit was reached, also after retries.",
        "Retry later, or raise the limit at the provider.",
        is_retryable=True,
    ),
    "backend_overloaded": Code(
        529,
        OVERLOADED,
        "The model provider is overloaded, also after retries.",
        "Retry later.",
        is_retryable=True,
    ),
    "backend_unreachable": Code(
        502,
        API,
        "No connection to the model provider.",
        "Retry later. Operator: the log line of the generator has the `reason`; see BACKENDS.md for proxies.",
        is_retryable=True,
    ),
    "backend_failed": Code(
        502,
        API,
        "The model provider answered with a server error.",
        "Retry later.",
        is_retryable=True,
    ),
    "backend_stalled": Code(
        504,
        TIMEOUT,
        "The model sent nothing for too long.",
        "Retry later.",
        is_retryable=True,
    ),
    "backend_broken": Code(
        502,
        API,
        "The model's answer broke off, or is not an answer of the API.",
        "Retry later. Operator: check that the base URL leads to the API.",
        is_retryable=True,
    ),
    "backend_unreadable": Code(
        502,
        API,
        "The model sent an event that cannot be read or does not fit its answer, twice. Text may be missing.",
        "Retry later. Operator: check that the base URL leads to the API, and look for a newer Tailrace.",
        is_retryable=True,
    ),
    "backend_event_too_large": Code(
        502,
        API,
        "The model sent an event that is larger than 32 MiB, or has more than 400,000 values. It is not retried: each "
        "call is paid for.",
        "Ask for less in one piece, for example a shorter tool result.",
    ),
    "entry_too_large": Code(
        502,
        API,
        "An entry of the answer is larger than the NATS server's `max_payload`. It is not retried: each call is paid "
        "for. Large events of a model are stored outside of their entries.",
        "Operator: set `max_payload` of nats-server to 8MB.",
    ),
    "backend_refused_key": Code(
        502,
        AUTHENTICATION,
        "The model provider rejected the generator's credentials, or its account has no credit.",
        "Operator: set a valid key, for example ANTHROPIC_API_KEY, and restart the generators.",
    ),
    "backend_refused_request": Code(
        400,
        INVALID,
        "The model provider rejected the request.",
        "Change the request; the message is the provider's.",
    ),
    # Failed turns: Tailrace's side.
    "interrupted": Code(
        500,
        API,
        "The answer broke off, and the turn has `on_interrupt: fail`.",
        "POST the turn again.",
    ),
    "attempts_exhausted": Code(
        500,
        API,
        "The turn has reached its limit of attempts: of those in a row that add nothing to the answer, or 50 in all.",
        "POST the turn again.",
    ),
    "deadline_exceeded": Code(
        504,
        TIMEOUT,
        "The answer or batch was not finished before its deadline.",
        "Ask for a shorter answer, or raise the deadline.",
    ),
}

# The codes of failed turns whose request can never succeed: the same messages would fail again in every later turn.
REFUSED_REQUEST = frozenset({"backend_refused_request", "blob_expired"})
