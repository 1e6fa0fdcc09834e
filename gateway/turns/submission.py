"""Submission of a turn: its state, and the extension points at which optional features take part."""

from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from tailrace.gateway.auth.api_request import HeaderSource
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto import entries
from tailrace.proto.ids import TurnId, TurnKey, new_id
from tailrace.proto.nats import Claim


class CountedRequest(NamedTuple):
    """A request whose client counts its repetitions, and sends no idempotency key."""

    path: str
    repetition: int
    """0 for the first request, 1 for its first repetition."""


@dataclass
class Submission:
    """The state of one POST until its request entry is stored. Features read and replace its fields."""

    principal: Principal
    raw: bytes
    """The request body. A repeated POST must have the same one."""
    idempotency_key: str | None = None
    response_headers: list[HeaderSource] = field(default_factory=list)
    """Functions that return headers for the response or the error response; called once, when the endpoint is done."""
    body_sha256: str = field(init=False)
    """The SHA-256 of `raw`, after the features of `prepare` have run."""
    own_turn: TurnKey = field(init=False)
    """A key that no other submission has. It names the holder of pins."""
    turn: TurnKey = field(init=False)
    """The turn's key: `own_turn`, or that of another POST's claim on the idempotency key, if its turn is not stored."""
    entry: entries.Request = field(init=False)
    """The request entry. It is set before the features of `amend` run."""
    entry_bytes: int = 0
    """The size of `entry`, with the conversation before it and without its blobs; 0 before it is known."""
    added_bytes: int = 0
    """The bytes that were added to the request, such as the contents of uploaded files."""
    may_be_stored: bool = False
    """Whether the entry is stored or may be stored. If so, its reservations stay until the turn ends."""
    is_followed: bool = False
    """Whether to subscribe to the turn before it is stored, because the response follows it."""
    repeats: Claim | None = None
    """The claim of an earlier POST that this one repeats, if it was found without an idempotency key."""
    when_delivered: Callable[[], Awaitable[None]] | None = None
    """Called after the whole answer was sent to the client. If it is set, a repeated POST gets this turn until then."""
    cleanup: AsyncExitStack = field(default_factory=AsyncExitStack)
    """Resources of features, which are released when the submission is over."""

    @property
    def body_bytes(self) -> int:
        """The bytes of the request with what was added to it."""
        return len(self.raw) + self.added_bytes

    @property
    def is_repeatable(self) -> bool:
        """Whether a repeated POST gets the same turn."""
        return self.idempotency_key is not None or self.when_delivered is not None

    def __post_init__(self) -> None:
        self.own_turn = self.turn = TurnKey(self.principal.tenant, TurnId(new_id()))


@dataclass
class TurnSubmission(Submission):
    """The submission of a single turn."""

    new_turn: NewTurn = field(kw_only=True)
    counted: CountedRequest | None = None
    """Set if the client counts its repetitions, so that a repetition can be recognised without a key."""


S = TypeVar("S", bound=Submission)
S_contra = TypeVar("S_contra", bound=Submission, contravariant=True)


class Feature(NamedTuple, Generic[S_contra]):
    """A step of an optional feature, which runs for each submission that needs it."""

    run: Callable[[S_contra], Awaitable[None]]
    """May raise Refused, LogError."""
    needs: Callable[[S_contra], object] | None = None
    """The step is skipped if this returns None or False: usually an `attrgetter`. None: every submission needs it."""


class SubmitFeatures(NamedTuple):
    """The steps of all optional features, by the moment at which they run."""

    prepare: tuple[Feature[TurnSubmission], ...] = ()
    """First of all: may replace the new turn and the idempotency key."""
    admit: tuple[Feature[Submission], ...] = ()
    """After the lookup of a repeated POST, before the entry is built."""
    amend: tuple[Feature[TurnSubmission], ...] = ()
    """After the entry is built, before the idempotency key is claimed: may replace the entry."""
    stored: tuple[Feature[Submission], ...] = ()
    """After the entry was appended."""


async def run_features(features: Iterable[Feature[S]], submission: S) -> None:
    """Runs those of `features` that `submission` needs, in order."""
    for feature in features:
        if feature.needs is None or feature.needs(submission) not in (None, False):
            await feature.run(submission)
