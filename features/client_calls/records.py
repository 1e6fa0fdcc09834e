"""Calls of the client's tools that wait for a decision: their records, and the queries about them.

A turn that was completed with such calls is parked if it is the last turn of its session. Its session then requires
action: it is in no process's memory, and holds no slot. When each of the calls has a decision, a gateway starts the
next turn with the results (PROTOCOL R136).
"""

from datetime import datetime
from typing import Any, ClassVar

import msgspec

from tailrace.proto.entries import Request
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, Tenant, TurnId
from tailrace.proto.records import Query, SessionPage
from tailrace.protocols.common.tool_definition import build_result, denial

Block = dict[str, Any]


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The decision about a call: its result, or that it was denied."""

    result: str | list[Block] | None = None
    """The result of the tool: a text, or content blocks in Anthropic's format. Null: the call was denied."""
    is_error: bool = False
    """Whether the tool has failed; `result` says why."""
    reason: str | None = None
    """Why the call was denied, for the model."""


class ClientCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call of a client's tool, with the decision about it."""

    call: str
    """The id of the call."""
    name: str
    """The name of the tool."""
    input: Block
    """The input of the tool, as the model has written it."""
    decision: Decision | None = None
    """The decision; null: the call waits for it."""
    decided_at: datetime | None = None
    """When it was decided."""
    decided_by: str | None = None
    """The id of the credential that decided; null without a decision, or if no credential was needed."""


class SessionCalls(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of a turn of a session, in the order of the answer."""

    session: SessionId
    """The session."""
    turn: TurnId | None = None
    """The turn that ended with the calls; null: the session requires no action."""
    since: datetime | None = None
    """When this turn ended."""
    calls: list[ClientCall] = []
    """The calls of this turn."""
    next: TurnId | None = None
    """The turn that continues this one."""

    @property
    def undecided(self) -> list[str]:
        """The ids of the calls that wait for a decision."""
        return [one.call for one in self.calls if one.decision is None]

    @property
    def decided_by(self) -> str | None:
        """The id of the credential that made the last decision; None without a decision or a credential."""
        decided = [(one.decided_at, one.decided_by) for one in self.calls if one.decided_at is not None]
        return max(decided, key=lambda one: one[0], default=(None, None))[1]


class Continuation(msgspec.Struct, frozen=True, kw_only=True):
    """The turn to start when all calls of `turn` have a decision."""

    turn: TurnId
    """The turn with the calls."""
    request: Request
    """The request of `turn` without its messages and reservations."""
    results: list[Block]
    """The `tool_result` block of each call, in the order of the calls."""
    by: str | None = None
    """The id of the credential of the last decision. Usage is counted for it."""


class DecidedTurn(msgspec.Struct, frozen=True):
    """A turn whose calls are all decided, and that no turn continues yet."""

    tenant: Tenant
    session: SessionId
    turn: TurnId
    age_s: float
    """Seconds since the last decision."""


class DecidedTurns(msgspec.Struct, frozen=True):
    """Decided turns, ordered by tenant and session."""

    turns: list[DecidedTurn]


class ListCalls(Query[SessionCalls], frozen=True):
    """The calls that a session waits for, or the calls of `turn`. Refused: session_not_found."""

    query: ClassVar[str] = "calls"
    owned: ClassVar[tuple[str, ...] | None] = ("session", "turn")
    session: str
    turn: str | None = None


class DecideCall(Query[SessionCalls], frozen=True):
    """Stores the decision about a call, once; the answer has all calls of that turn.

    The same decision again changes nothing. `turn` is only needed for models that number the calls of each turn anew.
    Refused: session_not_found, call_not_found, call_decided.
    """

    query: ClassVar[str] = "decide_call"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str
    call: str
    decision: Decision
    by: str | None = None
    user: str | None = None
    """The user that the session must have; null: any user."""
    turn: str | None = None


class GetContinuation(Query[Continuation], frozen=True):
    """The continuation of a session of which all calls are decided. Refused: call_not_found."""

    query: ClassVar[str] = "continuation"
    owned: ClassVar[tuple[str, ...] | None] = ("session",)
    session: str


class ListParked(Query[SessionPage], frozen=True):
    """A page of the sessions that require action, the shortest wait first. Refused: cursor_invalid."""

    query: ClassVar[str] = "parked"
    owned: ClassVar[tuple[str, ...] | None] = ()
    after: str | None = None
    limit: int = 50
    user: str | None = None
    min_age_s: float = 0.0


class ListDecided(Query[DecidedTurns], frozen=True):
    """Decided turns of all tenants, whatever the tenant of the query, after `session` of `tenant`."""

    query: ClassVar[str] = "decided"
    tenant: str = ""
    session: str = ""


def result_block(call: str, decision: Decision) -> Block:
    """Returns the `tool_result` block by which the model gets a decision."""
    if decision.result is None:
        return build_result(call, denial(decision.reason), is_error=True)
    return build_result(call, decision.result, is_error=decision.is_error)


def call_not_found() -> Refused:
    """Returns the refusal of a call for which the session does not wait."""
    return Refused(
        "call_not_found",
        "this session waits for no call of this id: it is unknown, or the conversation has gone on without a decision",
    )
