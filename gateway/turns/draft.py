"""A POST that creates a turn or a batch: what the client asks for, and the stored turn that it gets."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request

from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.last_event_id import AFTER, last_event_id, split_part
from tailrace.gateway.turns.idempotency_key import AUTO, idempotency_key_of
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto import entries
from tailrace.proto.errors import CursorUnknown, Refused, not_found
from tailrace.proto.ids import Seq, parse_cursor
from tailrace.proto.nats import Claim
from tailrace.proto.ownership import ScopedKey, owned_key

WhenDelivered = Callable[[], Awaitable[None]]


class Retry(NamedTuple):
    """A POST whose client, or a proxy, counts its repetitions instead of sending a key."""

    keys: tuple[str, ...]
    """The keys of the claims by which repetitions find the turn."""
    claim: Claim | None = None
    """The claim of the turn that this POST repeats; None if it is the first one, or starts another turn."""
    when_delivered: WhenDelivered | None = None
    """Removes the claims of the turn."""


@dataclass(frozen=True)
class Draft:
    """The request of one POST that may create a turn or a batch."""

    principal: Principal
    raw: bytes
    """The request body. A repeated POST must have the same one."""
    idempotency_key: str | None = None
    cursor: Seq | None = None
    """The last event that the client has received. With it, the POST resumes an answer, and never starts a turn."""
    added_bytes: int = 0
    """The bytes of `new_turn` that are not in `raw`."""
    is_followed: bool = False
    """Whether the response follows the turn, so that the gateway subscribes to it before it is stored."""
    is_json: bool = False
    """Whether the response is one JSON body at the end of the turn."""
    path: str = ""
    headers: Headers = field(default_factory=Headers)
    response_headers: list[Mapping[str, str]] = field(default_factory=list)
    """Headers for the response, or for the error response. The submission adds to them."""
    retry: Retry | None = None
    """The repetition of a client without a key."""
    body_sha256: str = ""
    """The hash of `raw`, when the draft is stored."""

    @property
    def body_bytes(self) -> int:
        """The bytes of the request with the data that was added to it."""
        return len(self.raw) + self.added_bytes

    @property
    def is_repeatable(self) -> bool:
        """Whether a repeated POST gets the same turn."""
        return bool(self.idempotency_key or self.cursor)


@dataclass(frozen=True, kw_only=True)
class TurnDraft(Draft):
    """The request of a POST that may create one turn."""

    new_turn: NewTurn
    """Its session is that of the body or of a header."""


class Stored(NamedTuple):
    """A turn in the log."""

    key: ScopedKey
    entry: entries.Request
    """The request entry."""
    when_delivered: WhenDelivered | None = None
    """Called after the whole answer was sent to the client. If it is set, a repeated POST gets this turn until then."""


def draft_turn(
    request: ApiRequest,
    new_turn: NewTurn,
    raw: bytes,
    *,
    default_key: str | None = None,
    is_followed: bool = False,
    is_json: bool = False,
    added_bytes: int = 0,
) -> TurnDraft:
    """Returns the draft of `new_turn`. `default_key` is its key if the request has no Idempotency-Key.

    Raises Refused for an invalid key or cursor, and for a project of a private user.
    """
    if new_turn.project is not None and not request.access.is_whole_tenant:
        # Projects are the tenant's. Claude Code works in one folder for all sessions of a project. A turn that a
        # feature derives from a stored one has no check: it keeps the project that the tenant has chosen.
        raise not_found("project")
    key = idempotency_key_of(request) or default_key
    if key not in (None, AUTO):
        key = owned_key(request.access, key)
    return TurnDraft(
        request.principal,
        raw,
        key,
        cursor_of_post(request),
        added_bytes,
        is_followed,
        is_json,
        request.scope["path"],
        request.headers,
        request.response_headers,
        new_turn=new_turn,
    )


def cursor_of_post(request: Request) -> Seq | None:
    """Returns the cursor of a POST that resumes its answer, from `Last-Event-ID` or the query; None: a new turn.

    fetch-event-source and sse.js repeat their POST with this header when the stream was cut. Raises Refused.
    """
    text = last_event_id(request, AFTER)
    if not text:
        return None
    try:
        return parse_cursor(split_part(text)[0])
    except CursorUnknown as error:
        raise cursor_mismatch(f"{text[:40]!r} is not an event id") from error


def cursor_mismatch(reason: str) -> Refused:
    """Returns the error for a POST whose cursor resumes no turn. The POST must not start a turn, which would cost
    money."""
    return Refused("cursor_mismatch", f"`Last-Event-ID`: {reason}: send the last `id:` of this answer and its body")
