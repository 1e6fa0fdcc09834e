"""A short history of the panels' values, calculated from samples of metrics in Prometheus's text format.

It keeps the growth of counters for the longest window, and the last values of each query. Its memory is bounded by the
number of groups, and by the number of series that a process exports.
"""

import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from prometheus_client.parser import text_string_to_metric_families

from tailrace.features.ops.expressions import Expression, Gauge, Group, Growth, Selection, Values

# A sample of a small system costs 6 ms of CPU.
SAMPLE_EVERY_S = 10.0
KEPT_S = 900
# Four scrapes of a Prometheus that scrapes every 15 s, like Grafana's $__rate_interval.
WINDOW_S = 60
POINTS = round(KEPT_S / SAMPLE_EVERY_S) + 1
# Bounds the memory of one selection. The labels have far fewer combinations of values.
GROUPS_MAX = 2000
AGGREGATES: dict[str, Callable[[float, float], float]] = {"sum": operator.add, "max": max, "min": min}

Point = float | None


class History:
    """The values of queries at the last POINTS samples. `add` adds a sample of all targets."""

    def __init__(self, queries: Sequence[Expression]) -> None:
        selections = dict.fromkeys(selection for query in queries for selection in query.selections())
        self._gauges: dict[Gauge, Values] = {one: {} for one in selections if isinstance(one, Gauge)}
        self._growths = {one: _Totals(one) for one in selections if isinstance(one, Growth)}
        self._by_metric: dict[str, list[Selection]] = {}
        for selection in selections:
            self._by_metric.setdefault(selection.metric, []).append(selection)
        self._targets: dict[str, _Target] = {}
        self._times: deque[float] = deque(maxlen=max([POINTS, *(one.points for one in self._growths.values())]))
        self._values = [(query, dict[Group, deque[Point]]()) for query in queries]

    def add(self, now: float, texts: Mapping[str, tuple[Mapping[str, str], str]]) -> None:
        """Adds a sample: for each target, the labels that its series get, and the text that it exported at `now`."""
        for values in self._gauges.values():
            values.clear()
        for target, (labels, text) in texts.items():
            self._read(self._targets.setdefault(target, _Target()), labels, text)
        self._times.append(now)
        for totals in self._growths.values():
            totals.keep()
        for query, points in self._values:
            values = query.evaluate(self)
            for group in values.keys() - points.keys():
                points[group] = deque(maxlen=POINTS)
            for group, series in points.items():
                value = values.get(group)
                series.append(None if value is None else float(f"{value:.5g}"))

    @property
    def times(self) -> list[float]:
        return list(self._times)[-POINTS:]

    @property
    def since(self) -> float | None:
        """The time of the oldest sample that is kept; None before the first one."""
        return self._times[0] if self._times else None

    def values(self, number: int) -> dict[Group, list[Point]]:
        """Returns the values of the query with index `number` at `times`, by group. Leaves out groups without any."""
        _, points = self._values[number]
        length = min(len(self._times), POINTS)
        nothing: list[Point] = [None]
        return {
            group: nothing * (length - len(series)) + list(series)
            for group, series in points.items()
            if any(point is not None for point in series)
        }

    def read_gauge(self, gauge: Gauge) -> Values:
        return self._gauges[gauge]

    def read_growth(self, growth: Growth) -> tuple[Values, float]:
        """Returns how much the counters have grown in the window, and the seconds that the window covers."""
        points = min(self._growths[growth].points, len(self._times))
        if points == 1:
            return {}, 0.0
        return self._growths[growth].compute_growth(), self._times[-1] - self._times[-points]

    def _read(self, target: "_Target", labels: Mapping[str, str], text: str) -> None:
        for line in text.split("\n"):
            name, _, number = line.rpartition(" ")
            found = target.selected.get(name)
            try:
                if found is None:
                    found = target.selected[name] = [] if line.startswith("#") else self._select(name, labels)
                value = float(number) if found else 0.0
            except ValueError:
                # A target may be another server, whose text is not in this format: skip the line.
                continue
            if found:
                grown = target.measure_growth(name, value)
                for selection, group in found:
                    if isinstance(selection, Growth):
                        self._growths[selection].add(group, grown)
                    elif isinstance(selection, Gauge) and (value > 0 or not selection.is_positive):
                        values = self._gauges[selection]
                        values[group] = AGGREGATES[selection.how](values[group], value) if group in values else value
        target.is_known = True

    def _select(self, series: str, labels: Mapping[str, str]) -> list[tuple[Selection, Group]]:
        """Returns the selections that a series belongs to, with its group in each."""
        metric = series.partition("{")[0]
        if metric not in self._by_metric:
            return []
        found = {**_labels(series), **labels}
        groups = ((one, one.group(metric, found)) for one in self._by_metric[metric])
        return [(one, group) for one, group in groups if group is not None]


@lru_cache(maxsize=10_000)
def _labels(series: str) -> Mapping[str, str]:
    """Returns the labels of a series. All targets of a part have the same series, and parsing takes 80 microseconds."""
    (family,) = text_string_to_metric_families(f"{series} 0")
    return family.samples[0].labels


class _Target:
    """The series of one target: the selections that each belongs to, and its last value."""

    def __init__(self) -> None:
        self.selected: dict[str, list[tuple[Selection, Group]]] = {}
        self.is_known = False
        self._last: dict[str, float] = {}

    def measure_growth(self, name: str, value: float) -> float:
        """Returns the growth of a counter since the last sample. A counter that is lower than before was reset to 0.

        A new series of a known target is counted from 0. (Prometheus leaves out the first events of a series.)
        """
        last = self._last.get(name, 0.0 if self.is_known else value)
        self._last[name] = value
        return value - last if value >= last else value


class _Totals:
    """The total growth of each group at the samples of one window."""

    def __init__(self, growth: Growth) -> None:
        self.points = round((growth.window_s or WINDOW_S) / SAMPLE_EVERY_S) + 1
        self._now: Values = {}
        self._kept: dict[Group, deque[float]] = {}

    def add(self, group: Group, grown: float) -> None:
        if group not in self._now:
            if len(self._now) >= GROUPS_MAX:
                return
            self._now[group] = 0.0
            # The 0 makes the first growth count.
            self._kept[group] = deque([0.0], maxlen=self.points)
        self._now[group] += grown

    def keep(self) -> None:
        for group, total in self._now.items():
            self._kept[group].append(total)

    def compute_growth(self) -> Values:
        return {group: kept[-1] - kept[0] for group, kept in self._kept.items()}
