"""Errors that cross a process boundary or reach a client: the exception tree and the table of error codes.

    TailraceError
     +- SettingsInvalid            a setting is invalid: the process does not start
     |   +- CredentialMissing      no API key exists yet, and one is needed: the gateway waits at its start
     +- AddressInUse               another program uses the port: the process may be started again
     +- Refused                    the request is rejected: `code` gives the reason
     +- SandboxFailed              the subprocess for a client's schema or template was too slow or crashed
     |   +- SandboxBusy            all subprocess slots were taken for too long: retry
     +- LogError                   NATS
     |   +- LogUnavailable         no answer from the log in time, or no stream: retry later
     |   |   +- LogRefused         NATS rejects the user or password: the process does not start
     |   |   +- LogDenied          NATS denies the permission to publish: its nats-users.conf is of another version
     |   |   +- PeerAbsent         no generator of this name is connected to NATS
     |   +- LogFull                the stream's byte limit is reached; running turns have a reserve
     |   +- LogMisconfigured       NATS, a stream or a consumer belongs to another version: the process does not start
     |   |   +- LogIncomplete      a stream, bucket or consumer is missing: the process waits at its start
     |   +- EntryTooLarge          payload and headers exceed the server's limit
     |   +- FenceLost              another writer owns the turn: stop at once, acknowledge nothing
     |   +- TurnUnknown            the log has no entry of that turn
     |   |   +- TurnDamaged        the log has lost entries of that turn, and its end
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

Each module that uses a foreign library catches that library's exceptions and raises one of these `from` them.
"""

import csv
import re
from importlib.resources import files
from typing import Any, Literal

import msgspec

# A message about a field or a query parameter begins with its name in backquotes.
PARAM = re.compile(r"`([A-Za-z_][\w.\[\]-]{0,199})`")


class TailraceError(Exception):
    """Root of the tree. Never raised itself."""


class SettingsInvalid(TailraceError):
    """A setting is invalid. The message names the environment variable and its valid values."""


class CredentialMissing(SettingsInvalid):
    """A gateway that other machines can reach has no credential yet. An API key that is created later is enough."""


class AddressInUse(TailraceError):
    """Another program uses the port of a setting. That program may end, so a supervisor starts the process again."""


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
    """Returns the refusal of an unknown id, of another tenant's id, and of text that cannot be an id."""
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


class LogRefused(LogUnavailable):
    """NATS rejects the user or password of TAILRACE_NATS_URL."""


class LogDenied(LogUnavailable):
    """NATS denies this process's user the permission to publish there."""


class PeerAbsent(LogUnavailable):
    """No generator of this name is connected to NATS. One that runs may be about to connect again."""


class LogFull(LogError):
    """The byte limit of the stream or of the server's storage is reached."""

    code = "log_full"


class LogMisconfigured(LogError):
    """NATS, a stream or a consumer has the wrong version or configuration. The message names the command to run."""


class LogIncomplete(LogMisconfigured):
    """A stream, bucket or consumer is missing. `tailrace streams` creates it."""


class EntryTooLarge(LogError):
    """Payload and headers together exceed the server's limit."""

    code = "body_too_large"


class FenceLost(LogError):
    """Another writer has appended to the turn. The caller must stop writing the turn at once."""


class TurnUnknown(LogError):
    """The log has no entry of the turn."""

    code = "turn_not_found"


class TurnDamaged(TurnUnknown):
    """The log has lost entries of the turn, and no valid end is left (PROTOCOL R144)."""


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
    names of hosts, for the operator; users see only `message`. `obstacle` names the cause in a few words without hosts,
    if the call was not sent and a later call may connect. `details` are the API's details about the request, by which
    Anthropic's SDKs choose the class of the error.
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
    """A row of errors.csv: HTTP status, Anthropic's error type, and the texts of `tailrace explain`."""

    status: int
    type: str
    """Anthropic's error type (docs: "API errors"): clients that handle Anthropic's errors handle these, too."""
    is_retryable: bool
    """Whether the same request may succeed later."""
    meaning: str
    advice: str


def _read_codes() -> dict[str, Code]:
    text = files("tailrace.proto").joinpath("errors.csv").read_text(encoding="utf-8")
    (_, *rows) = csv.reader(text.splitlines())
    return {code: Code(int(status), kind, bool(retryable), *texts) for code, status, kind, retryable, *texts in rows}


# Clients repeat a request by themselves after 409 and 429. So `turn_cancelled` has 410, because the answer will never
# exist, and `budget_exceeded` has 402, because a budget does not renew within seconds.
CODES = _read_codes()

# The codes of failed turns whose request can never succeed: the same messages would fail again in every later turn.
REFUSED_REQUEST = frozenset({"backend_refused_request", "model_not_found", "blob_expired"})
