"""An optional feature of a generator. The core knows features only by this type, and `__main__` lists them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from tailrace.generators.attempt_runner import WrapSink
from tailrace.generators.backend_order import BackendOrders
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.measured import ObserveCall
from tailrace.generators.backends.registry import Kinds
from tailrace.generators.call_limits import CallLimits
from tailrace.generators.continuation import FilterCall
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import Routing
from tailrace.generators.planner import CheckAnswer, FindObstacle
from tailrace.generators.settings import Settings
from tailrace.generators.turn_runner import ObserveAttempt, PrepareTurn
from tailrace.generators.worker import Lane
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.rpc import Handler
from tailrace.proto.runtime.feature_parts import join_distinct


class Hooks(NamedTuple):
    """The functions by which features change the calls of turns and inspect answers, each in the order given."""

    filters: Sequence[FilterCall] = ()
    """They change each call."""
    late_filters: Sequence[FilterCall] = ()
    """They change each call after all `filters`: they add messages that the first call of the turn does not have."""
    sinks: Sequence[WrapSink] = ()
    """The last one receives the model's events first."""
    obstacles: Sequence[FindObstacle] = ()
    """They find what prevents the continuation of a partial answer."""
    checks: Sequence[Callable[[], CheckAnswer]] = ()
    """Each makes a check of complete answers."""

    @property
    def all_filters(self) -> Sequence[FilterCall]:
        return (*self.filters, *self.late_filters)


class Generator(NamedTuple):
    """The services of one generator, from which features make their parts."""

    settings: Settings
    connection: Connection
    name: str
    """The name of this process in the log."""
    log: TurnLog
    blobs: BlobLoader
    orders: BackendOrders
    claude: AnthropicApi | None
    """Anthropic's API, if it is one of the backends."""
    hooks: Hooks
    """The hooks of all features."""


class Parts(NamedTuple):
    """The parts of a feature in one generator."""

    routing: Routing | None = None
    """Chooses the backends of calls, in place of the core. At most one feature has a routing."""
    limits: CallLimits | None = None
    """Limits the cost of turns. At most one feature has limits."""
    observe_attempt: ObserveAttempt | None = None
    """At most one feature observes attempts."""
    observe_call: ObserveCall | None = None
    """Observes the calls of all backends."""
    prepare: Sequence[PrepareTurn] = ()
    """They change or end a turn before it runs."""
    lanes: Sequence[Lane] = ()
    """They run deliveries of one kind beside the turns."""
    handlers: Mapping[str, Handler] = {}
    """Handlers of queries by name."""


class Feature(NamedTuple):
    """A feature of a generator."""

    hooks: Hooks = Hooks()
    start: Callable[[Generator], Parts] = lambda _: Parts()
    backends: Kinds = ()


Features = Sequence[Feature]


def kinds_of(features: Features) -> Kinds:
    """Returns the kinds of backends of all features."""
    return [kind for feature in features for kind in feature.backends]


def join_handlers(of_core: Mapping[str, Handler], started: Iterable[Parts]) -> dict[str, Handler]:
    """Returns the handlers of the core and of features. Raises ValueError for two handlers of a query."""
    every = (of_core, *(part.handlers for part in started))
    return join_distinct((item for each in every for item in each.items()), "query")


def join_hooks(features: Features) -> Hooks:
    """Returns the hooks of all features, in their order."""
    hooks = [feature.hooks for feature in features]
    return Hooks(*(tuple(chain.from_iterable(each)) for each in zip(Hooks(), *hooks, strict=True)))
