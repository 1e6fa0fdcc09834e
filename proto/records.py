"""What is told of turns and sessions outside their log: by the gateway's API, and by persistence to the gateway.

The same record comes out of a fold and out of the database, so a reader cannot see which one answered.
"""

from datetime import datetime
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

import msgspec

from tailrace.proto.entries import Failure, Message, Outcome
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.fold import Turn, content
from tailrace.proto.ids import Seq, SessionId, TurnId
from tailrace.proto.subjects import TurnKey
from tailrace.proto.usage import NANO_USD_PER_USD, Usage

A = TypeVar("A", bound=msgspec.Struct)


class Query(msgspec.Struct, Generic[A], frozen=True):
    """What persistence is asked, under the name `query`; the answer is an `A`. Whose it is says the subject."""

    query: ClassVar[str]


def answer_type(question: type[Query[A]]) -> type[A]:
    """What stands in the brackets of a question's base."""
    (base,) = vars(question)["__orig_bases__"]
    shape: type[A]
    (shape,) = get_args(base)
    return shape


class TurnRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A turn as a client sees it. `input` are the messages that this turn added to its session."""

    turn: TurnId
    session: SessionId
    parent: TurnId | None
    model: str
    outcome: Outcome | Literal["running"]
    input: list[Message]
    content: list[dict[str, Any]]
    text: str
    stop_reason: str | None
    stop_sequence: str | None = None
    envelope: dict[str, Any] = {}
    """What the model's message said of itself besides: `container`, `context_management`, further counts…"""
    schema_valid: bool | None = None
    """Whether the answer is valid by the turn's JSON Schema; null: it has no schema, or it could not be checked."""
    error: Failure | None
    usage: Usage
    usage_is_estimated: bool
    """A call broke off, or is not done: its output is counted in characters."""
    cost_usd: float
    attempts: int
    metadata: dict[str, str]
    asked_at: datetime
    ended_at: datetime | None
    cursor: Seq
    """The last entry that this record knows of: a stream that starts after it misses nothing."""


class WebhookPayload(msgspec.Struct, frozen=True):
    """The body of a webhook, in Standard Webhooks' shape: `data` is what `GET /v1/turns/{turn}` tells.

    The type is `turn.completed`, `turn.cancelled` or `turn.failed`.
    """

    type: str
    timestamp: datetime
    data: TurnRecord
    links: dict[str, str]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What some turns add up to. The last three are what others call them; `total_tokens` are all of `usage`."""

    turns: int
    usage: Usage
    cost_usd: float
    message_count: int
    total_tokens: int
    total_cost: float


class SessionRecord(Totals, frozen=True, kw_only=True):
    """A conversation, with the totals of all its branches. It is active until it is left alone for a set time.

    `model` and `system_prompt` are its own, for turns that name none.
    """

    session: SessionId
    id: SessionId
    title: str | None
    project_id: str | None
    model: str | None
    system_prompt: str | list[dict[str, Any]] | None
    created_at: datetime
    updated_at: datetime
    """When a turn of it was last asked or ended."""
    is_active: bool


class TurnPage(msgspec.Struct, frozen=True):
    """Oldest first. `next` is the cursor of the next page, None on the last."""

    turns: list[TurnRecord]
    next: str | None


class Ancestry(msgspec.Struct, frozen=True):
    """Newest first. `next` is the turn that the next page begins with, None when no more are in the database."""

    turns: list[TurnRecord]
    next: TurnId | None


class SessionPage(msgspec.Struct, frozen=True):
    """Newest first. `next` is the cursor of the next page, None on the last."""

    sessions: list[SessionRecord]
    next: str | None


class Context(msgspec.Struct, frozen=True):
    """Where a follow-up turn goes on: its session, its parent, and the conversation of that branch until there."""

    session: SessionId
    parent: TurnId | None
    messages: list[Message]
    turns: list[tuple[TurnId, int]] = []
    """The branch's turns, oldest first, each with how many of `messages` stand until after its answer."""
    system: str | list[dict[str, Any]] | None = None
    """What a turn of this session is told that names no system prompt."""
    model: str | None = None
    """Who answers a turn of this session that names no model."""
    project: str | None = None
    """What the session belongs to: the first project that was named for it."""


# The questions, each with what it may be refused with.


class GetTurn(Query[TurnRecord], frozen=True):
    """turn_not_found."""

    query: ClassVar[str] = "turn"
    turn: TurnId


class GetSession(Query[SessionRecord], frozen=True):
    """session_not_found."""

    query: ClassVar[str] = "session"
    session: str


class ListSessions(Query[SessionPage], frozen=True):
    """Of one project, if one is named; cursor_invalid."""

    query: ClassVar[str] = "sessions"
    after: str | None = None
    limit: int = 50
    project: str | None = None


class ListSessionTurns(Query[TurnPage], frozen=True):
    """session_not_found, cursor_invalid."""

    query: ClassVar[str] = "session_turns"
    session: str
    after: str | None = None
    limit: int = 50


class GetAncestry(Query[Ancestry], frozen=True):
    """A turn and those before it; turn_not_found."""

    query: ClassVar[str] = "ancestry"
    turn: TurnId
    limit: int = 50


class GetContext(Query[Context], frozen=True):
    """session_not_found, parent_not_found, session_busy.

    `parent` None means the session's last turn. `session` None means the parent's. A parent that is still running has
    no answer to go on from: session_busy. With `begin`, a session that is not there is a new one of that name.
    """

    query: ClassVar[str] = "context"
    session: str | None = None
    parent: str | None = None
    begin: bool = False


class GetLastTurn(Query[TurnRecord], frozen=True):
    """The session's newest turn; session_not_found when it has none."""

    query: ClassVar[str] = "last"
    session: str


def record_from_fold(key: TurnKey, turn: Turn) -> TurnRecord:
    """A folded turn as a record; raises TurnUnknown for a fold without a request."""
    request = turn.request
    if request is None or turn.asked_at is None:
        raise TurnUnknown(f"the log has no turn {key.turn}")
    end = turn.end
    return TurnRecord(
        turn=key.turn,
        session=request.session,
        parent=request.parent,
        model=request.model,
        outcome=turn.outcome,
        input=request.messages[request.history :],
        content=[content(block) for block in turn.blocks],
        text=turn.text,
        stop_reason=end.stop_reason if end else None,
        stop_sequence=end.stop_sequence if end else None,
        envelope=(end.envelope or {}) if end else {},
        schema_valid=end.schema_valid if end else None,
        error=turn.error,
        usage=end.usage if end else turn.usage,
        usage_is_estimated=end.usage_is_estimated if end else turn.is_usage_estimated,
        cost_usd=end.cost_nano_usd / NANO_USD_PER_USD if end else 0.0,
        attempts=turn.attempt,
        metadata=request.metadata or {},
        asked_at=turn.asked_at,
        ended_at=turn.ended_at,
        cursor=turn.chain.last,
    )
