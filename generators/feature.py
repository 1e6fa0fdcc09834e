"""An optional feature of a generator. The core knows features only by this type, and `__main__` lists them."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple

from tailrace.generators.attempt_runner import WrapSink
from tailrace.generators.continuation import FilterCall
from tailrace.generators.planner import CheckAnswer, FindObstacle


class Hooks(NamedTuple):
    """The functions of features that change the calls of turns and inspect their answers, each in the order given."""

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


class Feature(NamedTuple):
    """A feature of a generator."""

    hooks: Hooks = Hooks()


Features = Sequence[Feature]


def join_hooks(features: Features) -> Hooks:
    """Returns the hooks of all features, in their order."""
    hooks = [feature.hooks for feature in features]
    return Hooks(*(tuple(chain.from_iterable(each)) for each in zip(Hooks(), *hooks, strict=True)))
