"""The steps of a submission that optional features provide, by name. The submission itself is in submit.py."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, NamedTuple

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.turns.draft import Retry, TurnDraft, WhenDelivered
from tailrace.gateway.turns.file_references import OpenFiles
from tailrace.gateway.turns.request_body import NewTurn, Params
from tailrace.proto import entries
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Claim
from tailrace.proto.ownership import Scope, ScopedKey

Check = Callable[[NewTurn], None]
RenderPrompts = Callable[[Sequence[Params], Tenant, int], Awaitable[Sequence[Params | Refused]]]
"""Called with the most bytes that all results together may have as JSON."""
TakePlace = Callable[[TurnDraft, TurnKey, entries.Request], AbstractAsyncContextManager[entries.Request]]


def _refuse(field: str, *_: object) -> Any:
    raise Refused("request_invalid", f"`{field}` is not supported by this server: leave it out")


def absent(field: str) -> Callable[..., Any]:
    """Returns the step that stands for the feature of `field` if it is absent: it refuses the request."""
    return partial(_refuse, field)


class OptionalSteps(NamedTuple):
    """Functions in the order in which they run, each with the field of a request that it handles.

    A step without a field is None if its feature is absent. Steps raise Refused and LogError unless they say otherwise.
    A step that reserves or holds something releases it by the exit stack that it gets.
    """

    check_webhook: Check = absent("webhook")
    """Checks the webhook URL of a turn."""
    check_on_disconnect: Check = absent("on_disconnect")
    """Checks what happens when the last reader of a turn disconnects."""
    check_max_cost: Check = absent("max_cost")
    """Checks the cost limit of a turn, in dollars."""
    check_queue: Check = absent("on_busy: queue")
    """Checks a turn that may have to wait for the turn before it."""
    render_prompt: Callable[[NewTurn, Tenant], Awaitable[NewTurn]] = absent("prompt")
    """Returns the turn with its prompt template rendered."""
    render_prompts: RenderPrompts = absent("prompt")
    """Renders the templates of a batch's inputs. Returns the error of each input that cannot be rendered."""
    derive_key: Callable[[Principal, NewTurn], Awaitable[tuple[str | None, bytes]]] = absent("Idempotency-Key: auto")
    """Returns the idempotency key of a turn, or None, and the bytes that it was derived from."""
    find_retry: Callable[[TurnDraft], Awaitable[Retry | None]] | None = None
    """Finds the turn that a POST without a key repeats."""
    open_files: OpenFiles = absent("file_id")
    """Returns the reader of the files to which messages of a request refer. Called if there are such messages."""
    check_schema: Callable[[dict[str, Any], Tenant], Awaitable[None]] = absent("schema")
    """Checks a JSON Schema of an answer."""
    claim_retry: Callable[[Tenant, Retry, Claim], Awaitable[WhenDelivered]] | None = None
    """Stores a claim by which a repetition finds this turn. Returns the function that removes it."""
    take_place: TakePlace | None = None
    """Surrounds the append of a turn with `on_busy: queue`, whose key is claimed: takes a place in the session for it,
    and gives the entry at that place. Raises LogUnavailable at the end if another turn has the place."""
    decide_call: Callable[[Principal, str, str, dict[str, Any]], Awaitable[ScopedKey | None]] = absent("resume")
    """Stores the decision about a call of a session. Returns the turn that follows; None while other calls wait."""
    read_decided: Callable[[Scope, str], Awaitable[list[entries.Message]]] | None = None
    """Returns the results of the decided calls for which a session waits: the next turn begins with them."""
    add_trace: Callable[[TurnKey, entries.Request], entries.Request] | None = None
    """Returns the entry with the trace that other processes continue. Raises nothing."""


CHECKS = (
    ("webhook", (None,), "check_webhook"),
    ("on_disconnect", ("continue",), "check_on_disconnect"),
    ("max_cost", (None,), "check_max_cost"),
    ("on_busy", ("reject", "interrupt", "branch"), "check_queue"),
)
"""Fields of a turn, the values that every server supports, and the step that checks a turn with another value."""


def check_fields(steps: OptionalSteps, new_turn: NewTurn) -> None:
    """Checks the fields of a turn that belong to optional features. Raises Refused."""
    for field, plain, step in CHECKS:
        if getattr(new_turn, field) not in plain:
            getattr(steps, step)(new_turn)


def join_steps(first: OptionalSteps, second: OptionalSteps) -> OptionalSteps:
    """Returns the steps of both. Raises ValueError if both have the same step."""
    defaults = OptionalSteps._field_defaults
    added = {name: step for name, step in second._asdict().items() if step is not defaults[name]}
    for name in added:
        if getattr(first, name) is not defaults[name]:
            raise ValueError(f"two features provide the step {name}")
    return first._replace(**added)
