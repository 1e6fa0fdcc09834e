"""Records of turns and sessions, and the queries about them that persistence answers.

The gateway's API and persistence use the same records. A fold and the database give equal records of the same turn.
"""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

import msgspec
from msgspec import UNSET, UnsetType

from tailrace.proto.end_entry import LOST_FAILURE
from tailrace.proto.entries import Failure, Message, Outcome, Prefix, StoredThinking
from tailrace.proto.errors import TurnUnknown
from tailrace.proto.fold import Turn, contents
from tailrace.proto.ids import Seq, SessionId, TurnId, TurnKey
from tailrace.proto.ownership import owner_of
from tailrace.proto.runtime.clock import seconds_between
from tailrace.proto.thinking_prefix import count_unchanged_tokens
from tailrace.proto.usage import NANO_USD_PER_USD, ModelUsage, Usage

A = TypeVar("A", bound=msgspec.Struct)

# The most items of a page. The gateway refuses a larger limit. Persistence reduces it, and so bounds each answer by
# itself.
PAGE_ITEMS_MAX = 200


class Query(msgspec.Struct, Generic[A], frozen=True, kw_only=True):
    """A query to persistence with the name `query`, answered by an `A`. The tenant is part of the NATS subject."""

    query: ClassVar[str]
    is_about_all_tenants: ClassVar[bool] = False
    owned: ClassVar[tuple[str, ...] | None] = None
    """The fields that name a turn or a session, which a private user must own. None: only for credentials that see the
    whole tenant."""
    viewer: str | UnsetType = UNSET
    """The private user that asks: the answer has only what this user owns. Left out: no private user."""


def answer_type(query: type[Query[A]]) -> type[A]:
    """Returns the answer type of a query class: the type argument of its base `Query[A]`."""
    (base,) = vars(query)["__orig_bases__"]
    shape: type[A]
    (shape,) = get_args(base)
    return shape


class ModelShare(Usage, frozen=True, kw_only=True):
    """The billed tokens of one model, and what they cost."""

    cost_usd: float | None
    """In dollars; null if a price is unknown."""


def shares_of(by_model: Mapping[str, ModelUsage]) -> dict[str, ModelShare]:
    """Returns the usage and cost by model of an `end` as clients receive it."""
    return {
        name: ModelShare(*used.counts, cost_usd=None if used.cost_is_unknown else used.cost_nano_usd / NANO_USD_PER_USD)
        for name, used in by_model.items()
    }


class TurnDetails(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The fields of a turn that no SQL statement names: the database stores them together, as JSON.

    A new field of a record is declared here, with a default, and needs no migration. `details_of` reads each field from
    the fold of the turn.
    """

    prefixes: list[Prefix] = []
    """The prompts of the calls that wrote the answer, as hashes, to find out why a prompt cache was missed."""


class TurnRecord(TurnDetails, frozen=True, kw_only=True, omit_defaults=False):
    """A turn as clients receive it. `input` holds the messages that this turn added to its session."""

    turn: TurnId
    """The id of the turn."""
    session: SessionId
    """The session of the turn."""
    parent: TurnId | None
    """The turn that this one continues."""
    model: str
    """The model that answers."""
    outcome: Outcome | Literal["running"]
    """How the turn ended, or `running`."""
    input: list[Message]
    """The messages that this turn added to its session."""
    content: list[dict[str, Any]]
    """The answer's content blocks, in Anthropic's format. A tool call that was cut has an empty `input`, and the text
    of the input in `partial_json`."""
    text: str
    """The text of the answer."""
    stop_reason: str | None
    """Why the model stopped."""
    stop_sequence: str | None = None
    """The text at which the model stopped, if it was one of the request's."""
    envelope: dict[str, Any] = {}
    """Other fields of the model's message: `container`, `context_management`, other counts… Those that came before the
    answer are in `message`: `diagnostics`, `input_transformations`…"""
    schema_valid: bool | None = None
    """Whether the answer is valid by the turn's JSON Schema; null: it could not be checked, or there is no schema."""
    error: Failure | None
    """Why the turn failed; null if it did not."""
    usage: Usage
    """The billed tokens of the turn, of all calls and models."""
    usage_is_estimated: bool
    """A call broke off or is running: its output tokens are estimated from the bytes of its text."""
    cost_usd: float | None
    """0 until the turn has ended. Null: a price is unknown; sums count such a turn by the rest of its cost."""
    answered_by: str | None = None
    """The model that answered, if it was not `model`: after a fallback on the model's server, for example."""
    by_model: dict[str, ModelShare] | None = None
    """`usage` and `cost_usd` by model, if other models than `model` have worked for the turn."""
    attempts: int
    """The number of attempts."""
    metadata: dict[str, str]
    """Labels of the turn, by which it can be found."""
    project: str | None = None
    """The project that the request named."""
    user: str | None = None
    """The end user who received the answer, as the request or the JWT named them."""
    owner: str | None = None
    """The owner: the user of the credential that has made the session. Null: the tenant."""
    asked_at: datetime
    """When the request was accepted."""
    first_token_at: datetime | None = None
    """When the first delta of the answer was stored; null: none was, or an older version recorded the turn."""
    ended_at: datetime | None
    """When the turn ended; null while it runs, and if it left the log before it ended."""
    cursor: Seq
    """The sequence of the last entry in this record: a stream that starts after it has no gap."""
    first_token_s: float | None = None
    """Seconds from `asked_at` to `first_token_at`."""
    duration_s: float | None = None
    """Seconds from `asked_at` to `ended_at`; null without `ended_at`."""
    unchanged_prompt_tokens: int | None = None
    """About how many tokens of the prompt stood in the prompt of the turn before, where a prompt cache can find them.
    `prefixes` say which parts have changed. Null: unknown, or there is no turn before."""

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "first_token_s", seconds_between(self.asked_at, self.first_token_at))
        msgspec.structs.force_setattr(self, "duration_s", seconds_between(self.asked_at, self.ended_at))
        unchanged = count_unchanged_tokens(self.prefixes, self.usage)
        msgspec.structs.force_setattr(self, "unchanged_prompt_tokens", unchanged)

    @property
    def has_end(self) -> bool:
        """Whether the turn's `end` was recorded, and not only that the turn left the log without one."""
        return self.outcome != "running" and self.error != LOST_FAILURE


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over turns. The last two repeat values under other APIs' names; `total_tokens` is the sum of `usage`."""

    turns: int
    """The number of turns."""
    usage: Usage
    """The tokens of the turns."""
    cost_usd: float
    """The cost of the turns, in dollars."""
    message_count: int
    """The number of messages."""
    total_tokens: int
    """The sum of all tokens in `usage`."""
    total_cost: float
    """The same as `cost_usd`."""


class SessionRecord(Totals, frozen=True, kw_only=True):
    """A conversation, with the totals of all its branches. The session is active until a set time after its last use.

    `model` and `system_prompt` are the defaults of its turns.
    """

    session: SessionId
    """The id of the session."""
    id: SessionId
    """The same as `session`."""
    title: str | None
    """The title of the session."""
    preview: str | None = None
    """The first 200 characters of the first question; null without a turn, or if its input is longer than 256 KiB."""
    project_id: str | None
    """The project of the session."""
    user: str | None = None
    """The user that the session was created for; otherwise the first user that its turns named."""
    owner: str | None = None
    """The owner: the user of the credential that has made the session. Null: the tenant."""
    model: str | None
    """The model of turns that name none."""
    system_prompt: str | list[dict[str, Any]] | None
    """The system prompt of turns that have none."""
    created_at: datetime
    """When the session was created."""
    updated_at: datetime
    """When one of its turns last started or ended."""
    is_active: bool
    """Whether the session was used recently."""


class TurnPage(msgspec.Struct, frozen=True):
    """A page of turns. `next` is the cursor of the next page, None on the last."""

    turns: list[TurnRecord]
    """The turns of this page."""
    next: str | None
    """The `after` of the next page; null on the last."""


class Ancestry(msgspec.Struct, frozen=True):
    """A turn and its ancestors, newest first. `next` is the first turn of the next page, None at the end."""

    turns: list[TurnRecord]
    next: TurnId | None


class SessionPage(msgspec.Struct, frozen=True):
    """A page of sessions, newest first. `next` is the cursor of the next page, None on the last."""

    sessions: list[SessionRecord]
    next: str | None
    total: int | None = None
    """All sessions; None for a page after a cursor."""


class Context(msgspec.Struct, frozen=True):
    """The position of a follow-up turn: session, parent, and the conversation of the branch up to the parent."""

    session: SessionId
    parent: TurnId | None
    messages: list[Message]
    turns: list[tuple[TurnId, int]] = []
    """The branch's turns, oldest first, each with the number of `messages` up to and including its answer."""
    system: str | list[dict[str, Any]] | None = None
    """The session's default system prompt."""
    model: str | None = None
    """The session's default model."""
    project: str | None = None
    """The session's project: the first that its turns named."""
    left_out: dict[TurnId, list[Message]] = {}
    """The messages of the turns that `messages` leaves out because of refusals (PROTOCOL R112)."""
    thinking: list[StoredThinking] = []
    """The thinking blocks of the branch, oldest first (PROTOCOL R140)."""
    prompts: dict[TurnId, Prefix] = {}
    """The prompt of the last call for each turn of the branch."""
    containers: dict[TurnId, str] = {}
    """The container in which code waits for results of the client's tools after a turn of the branch."""
    owner: str | UnsetType | None = UNSET
    """The owner of the session. Left out: the session does not exist yet."""


# The queries, each with the codes that it may be refused with.


class GetTurn(Query[TurnRecord], frozen=True):
    """One turn. Refused: turn_not_found."""

    query: ClassVar[str] = "turn"
    owned: ClassVar[tuple[str, ...] | None] = ("turn",)
    turn: TurnId


class GetSession(Query[SessionRecord], frozen=True):
    """One session. Refused: session_not_found."""

    query: ClassVar[str] = "session"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str


class ListSessions(Query[SessionPage], frozen=True):
    """A page of sessions, last used first, of one project if `project` is set. Refused: cursor_invalid."""

    query: ClassVar[str] = "sessions"
    owned: ClassVar[tuple[str, ...] | None] = ()
    after: str | None = None
    limit: int = 50
    project: str | None = None
    offset: int | None = None
    """In place of `after`: how many sessions are before the page."""
    user: str | None = None
    """Only sessions of this user."""


class ListSessionTurns(Query[TurnPage], frozen=True):
    """A page of a session's turns, oldest first by default. Refused: session_not_found, cursor_invalid."""

    query: ClassVar[str] = "session_turns"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str
    after: str | None = None
    limit: int = 50
    is_newest_first: bool = False


TurnOrder = Literal["asked_at", "first_token_s", "-cost_usd"]


class ListTurns(Query[TurnPage], frozen=True):
    """A page of the turns that have all `labels`, newest first, of the days `first` to `last`. Refused: cursor_invalid.

    With `outcome` only turns of this outcome. Labels are `model`, `key`, `user`, and `metadata.NAME`. With `text` only
    turns that contain all of its words; Refused: request_invalid for a text without a word. With the order
    `first_token_s` the turns whose first token took longest come first, with `-cost_usd` the costliest ones, and there
    is one page.
    """

    query: ClassVar[str] = "turns"
    owned: ClassVar[tuple[str, ...] | None] = ()
    labels: dict[str, str] = {}
    text: str | None = None
    first: date | None = None
    last: date | None = None
    after: str | None = None
    limit: int = 50
    outcome: Outcome | None = None
    order: TurnOrder = "asked_at"
    blob: str | None = None
    """Only for a private user, alone: one of its turns that refers to the blob with this SHA-256."""


class ListRunning(Query[TurnPage], frozen=True):
    """A page of the running turns, oldest first, of one session if `session` is set. Refused: cursor_invalid."""

    query: ClassVar[str] = "running"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str | None = None
    after: str | None = None
    limit: int = 50


class TurnPosition(msgspec.Struct, frozen=True):
    """A turn and its last entry in the database: its request if it runs, otherwise its end."""

    turn: TurnId
    cursor: Seq
    is_running: bool


class TurnPositions(msgspec.Struct, frozen=True):
    """At most 500 turns, in the order of their last entries."""

    turns: list[TurnPosition]


class ListTurnsSince(Query[TurnPositions], frozen=True):
    """The turns of a session that run, or whose last entry is after the sequence `since`."""

    query: ClassVar[str] = "turns_since"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str
    since: Seq


class GetAncestry(Query[Ancestry], frozen=True):
    """A turn and its ancestors, newest first; `next` is the first turn of the next page. Refused: turn_not_found."""

    query: ClassVar[str] = "ancestry"
    owned: ClassVar[tuple[str, ...] | None] = ("turn",)
    turn: TurnId
    limit: int = 50


class GetContext(Query[Context], frozen=True):
    """The conversation up to the answer of `parent` (R112). Refused: session_not_found, parent_not_found, session_busy.

    Without `parent`, the new turn continues the session's last turn; without `session`, the parent's session.
    session_busy: the turn to continue still runs, so it has no answer yet. With `create_session`, an unknown session is
    returned as an empty one of that name.
    """

    query: ClassVar[str] = "context"
    owned: ClassVar[tuple[str, ...] | None] = ("session", "parent")
    session: str | None = None
    parent: str | None = None
    # Gateways and persistence of two releases ask and answer each other during an upgrade (PROTOCOL R28).
    create_session: bool = msgspec.field(default=False, name="begin")


class GetLastTurn(Query[TurnRecord], frozen=True):
    """The session's newest turn. Refused: session_not_found if it has none."""

    query: ClassVar[str] = "last"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str


def details_of(turn: Turn) -> dict[str, Any]:
    """Returns the fields of TurnDetails that the fold, its end or its request has, by their names."""
    sources = [one for one in (turn.request, turn.end, turn) if one is not None]
    return {name: getattr(one, name) for one in sources for name in TurnDetails.__struct_fields__ if hasattr(one, name)}


def record_from_fold(key: TurnKey, turn: Turn) -> TurnRecord:
    """Returns the record of a folded turn. Raises TurnUnknown if the fold has no request."""
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
        content=contents(turn.blocks, end.stop_reason if end else None),
        text=turn.text,
        stop_reason=end.stop_reason if end else None,
        stop_sequence=end.stop_sequence if end else None,
        envelope=(end.envelope or {}) if end else {},
        schema_valid=end.schema_valid if end else None,
        error=turn.error,
        usage=end.usage if end else turn.usage,
        usage_is_estimated=end.usage_is_estimated if end else turn.is_usage_estimated,
        cost_usd=end.cost_usd if end else 0.0,
        answered_by=end.answered_by if end else None,
        by_model=shares_of(end.by_model) if end is not None and end.by_model else None,
        attempts=turn.attempt,
        metadata=request.metadata or {},
        project=request.project,
        user=request.user,
        owner=owner_of(request),
        asked_at=turn.asked_at,
        first_token_at=turn.first_token_at,
        ended_at=turn.ended_at,
        cursor=turn.chain.last,
        **details_of(turn),
    )
