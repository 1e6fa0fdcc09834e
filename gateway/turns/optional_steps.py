"""The steps of a submission that optional features provide, by name. The submission itself is in submit.py."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, TypeVar

from tailrace.gateway.auth.admission import Admission
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.turns.draft import TurnDraft
from tailrace.gateway.turns.file_references import OpenFiles
from tailrace.gateway.turns.repeats import Repeat
from tailrace.gateway.turns.request_body import NewTurn, Params
from tailrace.proto import entries
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Claim

S = TypeVar("S")
WhenDelivered = Callable[[], Awaitable[None]]
RenderPrompts = Callable[[Sequence[Params], Tenant, int], Awaitable[Sequence[Params | Refused]]]
"""Called with the most bytes that all results together may have as JSON."""


BuiltEntry = tuple[entries.Request, int]
"""A request entry, and its size with the conversation before it and without its blobs; 0 if that is unknown."""


class Admitted(NamedTuple):
    """A POST that was admitted, whose entry is built next."""

    principal: Principal
    own: TurnKey
    """A key that no other POST has. It names the holder of pins."""
    turn: TurnKey
    """`own`, or, if another POST has claimed the idempotency key and not stored its turn, the key of that turn."""
    body_bytes: int
    """The bytes of the request."""
    body_sha256: str
    admission: Admission | None
    """The counts and reservations of the POST for its limits; None where no limit applies."""
    held: AsyncExitStack
    """Memory and pins, which are released when the submission is over."""
    find_repeat: Callable[[], Awaitable[Repeat]]
    """Looks for the turn of a concurrent POST with the same key."""
    steps: "OptionalSteps"


class Retry(NamedTuple):
    """A POST whose client counts its repetitions instead of sending a key."""

    key: str
    """The key of the claim by which a repetition finds the turn."""
    claim: Claim | None = None
    """The claim of the turn that this POST repeats; None if it is the first one, or starts another turn."""
    when_delivered: WhenDelivered | None = None
    """Removes `claim`."""


class OptionalSteps(NamedTuple):
    """Functions in the order in which they run; a step is None if its feature is absent.

    Steps raise Refused and LogError unless they say otherwise. A step that reserves or holds something releases it by
    the exit stack that it gets.
    """

    check_webhook: Callable[[str], None] | None = None
    """Checks the webhook URL of a turn."""
    check_on_disconnect: Callable[[str], None] | None = None
    """Checks what happens when the last reader of a turn disconnects."""
    check_max_cost: Callable[[float], None] | None = None
    """Checks the cost limit of a turn, in dollars."""
    check_queue: Callable[[NewTurn], None] | None = None
    """Checks a turn that may have to wait for the turn before it."""
    render_prompt: Callable[[NewTurn, Tenant], Awaitable[NewTurn]] | None = None
    """Returns the turn with its prompt template rendered."""
    render_prompts: RenderPrompts | None = None
    """Renders the templates of a batch's inputs. Returns the error of each input that cannot be rendered."""
    derive_key: Callable[[Principal, NewTurn], Awaitable[tuple[str | None, bytes]]] | None = None
    """Returns the idempotency key of a turn, or None, and the bytes that it was derived from."""
    find_retry: Callable[[TurnDraft], Awaitable[Retry | None]] | None = None
    """Finds the turn that a POST without a key repeats."""
    open_files: OpenFiles | None = None
    """Returns the reader of the files to which messages of a request refer. Called if there are such messages."""
    check_schema: Callable[[dict[str, Any], Tenant], Awaitable[None]] | None = None
    """Checks a JSON Schema of an answer."""
    add_trace: Callable[[TurnKey, entries.Request], entries.Request] | None = None
    """Returns the entry with the trace that other processes continue. Raises nothing."""
    claim_retry: Callable[[Tenant, Retry, Claim], Awaitable[WhenDelivered]] | None = None
    """Stores a claim by which a repetition finds this turn. Returns the function that removes it."""
    watch_readers: Callable[[TurnKey, str], None] | None = None
    """Begins to watch whether a stored turn with this model has readers. Raises nothing."""


def join_steps(first: OptionalSteps, second: OptionalSteps) -> OptionalSteps:
    """Returns the steps of both. Raises ValueError if both have the same step."""
    added = {name: step for name, step in second._asdict().items() if step is not None}
    for name in added:
        if getattr(first, name) is not None:
            raise ValueError(f"two features provide the step {name}")
    return first._replace(**added)


def require(step: S | None, field: str) -> S:
    """Returns the step of an optional feature. Raises Refused if the client asks for a feature that is absent."""
    if step is None:
        raise Refused("request_invalid", f"`{field}` is not supported by this server: leave it out")
    return step
