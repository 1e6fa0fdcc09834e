"""Every error that crosses a process or reaches a client: one tree of exceptions, one table of stable codes.

    TailraceError
     +- SettingsInvalid            a setting is wrong: the process does not start
     +- Refused                    a request that is refused: its code says how
     +- Unfinished                 what works on a stranger's schema or template was too slow, or broke
     |   +- Crowded                it was not even begun: others' were in the way for too long
     +- LogError                   the door to NATS
     |   +- LogUnavailable         no answer from the log in time, or no stream: try again later
     |   +- LogFull                the stream's limit is reached; running turns have a reserve
     |   +- LogMisconfigured       a stream or consumer is missing, or set up otherwise than we need
     |   +- EntryTooLarge          payload and headers exceed what the server takes
     |   +- FenceLost              another writer owns the turn: stop at once, acknowledge nothing
     |   +- TurnUnknown            no entry of that turn is in the log
     |   +- CursorUnknown          that sequence is not an entry of that turn
     |   +- BlobUnknown            what was lifted out of a request is not there, or has expired
     +- StoreError                 the door to the database
     |   +- StoreBusy              another program holds it: nothing is wrong, try again soon
     |   +- StoreUnwritable        full, read-only, or a disk that fails: nothing is acknowledged until it is mended
     |   +- StoreRefused           a row that it cannot hold, today or ever: the others can be written without it
     |   +- StoreCorrupt           damaged, gone, or no database: a new one is made from the log
     |   +- StoreTooNew            a newer version has written it: this one does not touch it
     +- HookError                  a webhook that did not reach its receiver
     |   +- HookFailed             this time: no connection, no answer
     |   +- HookRefused            ever: nobody is sent to where its URL leads
     +- BackendError               the model did not answer as it should: its code says how, and whether to try again

A foreign exception stops at its door and becomes one of these, `from` the original.
"""

import msgspec


class TailraceError(Exception):
    """The root: nothing raises it itself."""


class SettingsInvalid(TailraceError):
    """A setting is wrong; the message names the variable and what it may be."""


class Refused(TailraceError):
    """A request that is refused. `code` is a row of CODES; the message says what to do."""

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s


class Unfinished(TailraceError):
    """A process that works on what strangers have written was too slow, or broke; the message says which."""


class Crowded(Unfinished):
    """There was no room to begin in time. Nothing is wrong with the work: later there may be."""


class LogError(TailraceError):
    """Something at the door to NATS."""

    code = "log_unavailable"


class LogUnavailable(LogError):
    """The log did not answer in time."""


class LogFull(LogError):
    """The stream's byte limit, or the store's, is reached."""

    code = "log_full"


class LogMisconfigured(LogError):
    """A stream or consumer is missing or differs from what this version needs; the message says what to run."""


class EntryTooLarge(LogError):
    """Payload and headers together are larger than the server takes."""

    code = "body_too_large"


class FenceLost(LogError):
    """Another writer has appended to the turn. Whoever gets this stops writing it at once."""


class TurnUnknown(LogError):
    """The log holds no entry of the turn."""

    code = "turn_not_found"


class CursorUnknown(LogError):
    """The cursor is not the sequence of an entry of the turn."""

    code = "cursor_invalid"


class BlobUnknown(LogError):
    """There is no such blob of that tenant, or it has expired."""

    code = "blob_not_found"


class StoreError(TailraceError):
    """Something at the door to the database. A client hears persistence_unavailable."""


class StoreBusy(StoreError):
    """Another program holds the database, and held it for longer than `busy_timeout_s`."""


class StoreUnwritable(StoreError):
    """The database or its disk is full, read-only or failing. Somebody has to mend it; the log waits meanwhile."""


class StoreRefused(StoreError):
    """A value has no place in the database: a number beyond 64 bits, text that is no UTF-8. Nothing was written."""


class StoreCorrupt(StoreError):
    """The file is damaged, gone, or no database. It is moved aside, and a new one is made from the log."""


class StoreTooNew(StoreError):
    """A newer version has changed the database's shape; this one would not understand what it reads."""


class HookError(TailraceError):
    """A webhook that did not reach its receiver. No client hears of it."""


class HookFailed(HookError):
    """No connection, or no answer in time: the next try may be luckier."""


class HookRefused(HookError):
    """Its URL, or the address that it leads to, is none that may be called."""


# Whatever answers in the model's place may repeat all that it was sent. The log takes no end of that size, so the turn
# would be asked again and again.
BACKEND_MESSAGE_CHARS_MAX = 2000


class BackendError(TailraceError):
    """The model did not answer as it should. `code` is a row of CODES, which says whether to try again.

    `retry_after_s` is the server's own wish in seconds, None when it said nothing.
    """

    def __init__(self, code: str, message: str, *, retry_after_s: float | None = None) -> None:
        self.message = message[:BACKEND_MESSAGE_CHARS_MAX]
        super().__init__(self.message)
        self.code = code
        self.retry_after_s = retry_after_s


class Code(msgspec.Struct, frozen=True):
    """A row of the table: the HTTP status, Anthropic's error type, whether the same call may succeed later."""

    status: int
    type: str
    is_retried: bool = False


# The types are Anthropic's (docs: "API errors"), so that clients which know those know ours.
INVALID = "invalid_request_error"
CODES: dict[str, Code] = {
    # what a request may be refused for
    "http_invalid": Code(400, INVALID),
    "json_invalid": Code(400, INVALID),
    "request_invalid": Code(400, INVALID),
    "model_unknown": Code(400, INVALID),
    "schema_invalid": Code(400, INVALID),
    "prompt_invalid": Code(400, INVALID),
    "cursor_invalid": Code(400, INVALID),
    "dialect_unknown": Code(400, INVALID),
    "idempotency_key_invalid": Code(400, INVALID),
    "preflight_refused": Code(400, INVALID),
    "credential_invalid": Code(401, "authentication_error"),
    # 402 and not 429: clients ask again by themselves after a 429, and a budget does not renew within seconds.
    "budget_spent": Code(402, "billing_error"),
    "scope_missing": Code(403, "permission_error"),
    "host_refused": Code(403, "permission_error"),
    "origin_refused": Code(403, "permission_error"),
    "route_not_found": Code(404, "not_found_error"),
    "turn_not_found": Code(404, "not_found_error"),
    "batch_not_found": Code(404, "not_found_error"),
    "session_not_found": Code(404, "not_found_error"),
    "project_not_found": Code(404, "not_found_error"),
    "parent_not_found": Code(404, "not_found_error"),
    "model_not_found": Code(404, "not_found_error"),
    "blob_not_found": Code(404, "not_found_error"),
    "prompt_not_found": Code(404, "not_found_error"),
    "method_not_allowed": Code(405, INVALID),
    "session_busy": Code(409, INVALID),
    "session_exists": Code(409, INVALID),
    "project_exists": Code(409, INVALID),
    # 410 and not 409: clients ask again by themselves after a 409, and this answer will never come.
    "turn_cancelled": Code(410, INVALID),
    "headers_timeout": Code(408, INVALID, is_retried=True),
    "body_timeout": Code(408, INVALID, is_retried=True),
    # What a conversation refers to: sent again, it is there again.
    "blob_expired": Code(410, INVALID),
    "body_too_large": Code(413, "request_too_large"),
    "content_type_unsupported": Code(415, INVALID),
    "idempotency_key_reused": Code(422, INVALID),
    "headers_too_large": Code(431, INVALID),
    "rate_limited": Code(429, "rate_limit_error", is_retried=True),
    "turns_running": Code(429, "rate_limit_error", is_retried=True),
    "streams_open": Code(429, "rate_limit_error", is_retried=True),
    "internal": Code(500, "api_error"),
    "log_unavailable": Code(503, "api_error", is_retried=True),
    "log_full": Code(503, "overloaded_error", is_retried=True),
    "persistence_unavailable": Code(503, "api_error", is_retried=True),
    "generators_unavailable": Code(503, "api_error", is_retried=True),
    "draining": Code(503, "overloaded_error", is_retried=True),
    "gateway_full": Code(503, "overloaded_error", is_retried=True),
    "bodies_waiting": Code(503, "overloaded_error", is_retried=True),
    "checks_waiting": Code(503, "overloaded_error", is_retried=True),
    # what a turn may fail with: the model's side
    "backend_rate_limited": Code(429, "rate_limit_error", is_retried=True),
    "backend_overloaded": Code(529, "overloaded_error", is_retried=True),
    "backend_unreachable": Code(502, "api_error", is_retried=True),
    "backend_failed": Code(502, "api_error", is_retried=True),
    "backend_stalled": Code(504, "timeout_error", is_retried=True),
    "backend_broken": Code(502, "api_error", is_retried=True),
    "backend_refused_key": Code(502, "authentication_error"),
    "backend_refused_request": Code(400, INVALID),
    # what a turn may fail with: our side
    "interrupted": Code(500, "api_error"),
    "attempts_exhausted": Code(500, "api_error"),
    "deadline_exceeded": Code(504, "timeout_error"),
}
