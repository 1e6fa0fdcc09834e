"""Queries as expressions: each is written as PromQL for Prometheus, and evaluated over samples for `/ops`.

The expressions are those that the panels need: rates and increases of counters, gauges, quantiles, arithmetic. The
result of a query has a number for each group of series. A group is named by its values of the labels `by`. A group
without a number, for example a quantile of no observations, is left out.
"""

import math
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

WINDOW = "$__rate_interval"
"""The window of a rate in PromQL. Grafana replaces it."""
MATCHER = re.compile(r'(\w+)(=~|!=|=)"([^"]*)"')
OPERATORS = {"-": operator.sub, "/": operator.truediv}

Group = tuple[str, ...]
Values = dict[Group, float]


class Samples(Protocol):
    """The samples of the series that queries select."""

    def read_gauge(self, gauge: "Gauge") -> Values:
        """Returns the current value of each group."""

    def read_growth(self, growth: "Growth") -> tuple[Values, float]:
        """Returns the growth of each group in the window, and the length of the window in seconds."""


class Expression(ABC):
    """A query. Expressions can be subtracted, divided, and multiplied by a number."""

    @abstractmethod
    def promql(self, window: str = WINDOW) -> str:
        """Returns the query in PromQL, with rates over `window`, such as `5m`."""

    @abstractmethod
    def evaluate(self, samples: Samples) -> Values:
        """Returns the current value of each group."""

    @abstractmethod
    def selections(self) -> Iterator["Selection"]:
        """Yields the selections that `evaluate` reads."""

    @property
    @abstractmethod
    def by(self) -> tuple[str, ...]:
        """The names of the labels of a group."""

    def __sub__(self, other: "Expression") -> "Expression":
        return Arithmetic("-", self, other)

    def __truediv__(self, other: "Expression") -> "Expression":
        return Arithmetic("/", self, other)

    def __rmul__(self, factor: float) -> "Expression":
        return ScaledExpression(factor, self)


@dataclass(frozen=True)
class Selection(Expression):
    """The series of a metric that match `where`, which is written as in PromQL, summed up in groups."""

    metric: str
    by: tuple[str, ...] = ()
    where: str = ""

    def group(self, metric: str, labels: Mapping[str, str]) -> Group | None:
        """Returns the group of a series; None if it is not selected."""
        if metric != self.metric or not all(matches(labels) for matches in self._matchers):
            return None
        return tuple(labels.get(label, "") for label in self.by)

    def selections(self) -> Iterator["Selection"]:
        yield self

    @cached_property
    def _matchers(self) -> list["_Matcher"]:
        return [_Matcher(*found) for found in MATCHER.findall(self.where)]

    def _series(self) -> str:
        return f"{self.metric}{{{self.where}}}" if self.where else self.metric

    def _aggregate(self, how: str, series: str) -> str:
        return f"{how} by ({', '.join(self.by)}) ({series})" if self.by else f"{how}({series})"


@dataclass(frozen=True)
class _Matcher:
    label: str
    operator: str
    value: str

    def __call__(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.label, "")
        if self.operator == "=~":
            return re.fullmatch(self.value, value) is not None
        return (value == self.value) == (self.operator == "=")


@dataclass(frozen=True)
class Gauge(Selection):
    """Gauges. `how` aggregates the series of a group. `is_positive` selects only the series above 0."""

    how: Literal["sum", "max", "min"] = "sum"
    is_positive: bool = False

    def promql(self, window: str = WINDOW) -> str:  # noqa: ARG002  # a gauge has no window
        return self._aggregate(self.how, self._series() + (" > 0" if self.is_positive else ""))

    def evaluate(self, samples: Samples) -> Values:
        return samples.read_gauge(self)


@dataclass(frozen=True)
class Growth(Selection):
    """The sum of counters: events per second, or the number of events if `is_increase`.

    The window has `window_s` seconds; None means the window that `promql` or the samples use.
    """

    window_s: int | None = None
    is_increase: bool = False

    def promql(self, window: str = WINDOW) -> str:
        window = f"{self.window_s // 3600}h" if self.window_s else window
        function = "increase" if self.is_increase else "rate"
        return self._aggregate("sum", f"{function}({self._series()}[{window}])")

    def evaluate(self, samples: Samples) -> Values:
        grown, seconds = samples.read_growth(self)
        return grown if self.is_increase else {group: value / seconds for group, value in grown.items()}


@dataclass(frozen=True)
class Quantile(Expression):
    """A quantile of a histogram: `share` is 0.95 for the 95th percentile.

    `buckets` are the cumulative buckets, grouped by `le` and then by the labels `by`.
    """

    share: float
    buckets: Growth

    @property
    def by(self) -> tuple[str, ...]:
        return self.buckets.by[1:]

    def promql(self, window: str = WINDOW) -> str:
        return f"histogram_quantile({self.share:g}, {self.buckets.promql(window)})"

    def evaluate(self, samples: Samples) -> Values:
        histograms: dict[Group, list[tuple[float, float]]] = {}
        for (bound, *group), count in self.buckets.evaluate(samples).items():
            histograms.setdefault(tuple(group), []).append((float(bound), count))
        found = {group: quantile(self.share, sorted(buckets)) for group, buckets in histograms.items()}
        return {group: value for group, value in found.items() if value is not None}

    def selections(self) -> Iterator[Selection]:
        yield self.buckets


@dataclass(frozen=True)
class Arithmetic(Expression):
    """The difference or ratio of two queries, for the groups that both have."""

    operator: Literal["-", "/"]
    left: Expression
    right: Expression

    @property
    def by(self) -> tuple[str, ...]:
        return self.left.by

    def promql(self, window: str = WINDOW) -> str:
        left, right = self.left.promql(window), self.right.promql(window)
        return f"{f'({left})' if isinstance(self.left, Arithmetic) else left} {self.operator} {right}"

    def evaluate(self, samples: Samples) -> Values:
        left, right = self.left.evaluate(samples), self.right.evaluate(samples)
        both = [group for group in left if group in right and (right[group] or self.operator == "-")]
        return {group: OPERATORS[self.operator](left[group], right[group]) for group in both}

    def selections(self) -> Iterator[Selection]:
        yield from self.left.selections()
        yield from self.right.selections()


@dataclass(frozen=True)
class ScaledExpression(Expression):
    """A query multiplied by a number."""

    factor: float
    scaled: Expression

    @property
    def by(self) -> tuple[str, ...]:
        return self.scaled.by

    def promql(self, window: str = WINDOW) -> str:
        scaled = self.scaled.promql(window)
        return f"{self.factor:g} * {f'({scaled})' if isinstance(self.scaled, Arithmetic) else scaled}"

    def evaluate(self, samples: Samples) -> Values:
        return {group: self.factor * value for group, value in self.scaled.evaluate(samples).items()}

    def selections(self) -> Iterator[Selection]:
        yield from self.scaled.selections()


def quantile(share: float, buckets: list[tuple[float, float]]) -> float | None:
    """Returns a quantile as Prometheus's `histogram_quantile` does; None if there are no observations.

    `buckets` are upper bounds with cumulative counts, in ascending order; the last one is infinite. Observations are
    taken to be spread evenly within a bucket.
    """
    total = buckets[-1][1]
    if not total:
        return None
    rank, below, lower = share * total, 0.0, 0.0
    for bound, count in buckets:
        if count >= rank:
            if math.isinf(bound):
                return lower
            return lower + (bound - lower) * (rank - below) / (count - below) if count > below else bound
        below, lower = count, bound
    return lower
