"""A short history of the panels' values, calculated from samples of metrics in Prometheus's text format.

It keeps what the windows of the queries need, and the last values of each query. Its memory is bounded by the number of
groups, and by the number of series that a process exports.
"""

import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

from tailrace.gateway.ops.expressions import Expression, Gauge, Group, Growth, Selection, Values

# A sample of a small system costs 6 ms of CPU.
EVERY_S = 10.0
KEPT_S = 900
# The same as an interval of four scrapes of a Prometheus, which usually scrapes every 15 s.
WINDOW_S = 60
POINTS = round(KEPT_S / EVERY_S) + 1
# The groups of a selection: far more than the labels have values.
GROUPS_MAX = 2000
HOW: dict[str, Callable[[float, float], float]] = {"sum": operator.add, "max": max, "min": min}

Point = float | None


class History:
    """The values of queries. `add` adds a sample of all targets."""

    def __init__(self, queries: Sequence[Expression]) -> None:
        selections = dict.fromkeys(selection for query in queries for selection in query.selections())
        self._gauges: dict[Gauge, Values] = {one: {} for one in selections if isinstance(one, Gauge)}
        self._growths = {one: _Totals(one) for one in selections if isinstance(one, Growth)}
        self._by_metric: dict[str, list[Selection]] = {}
        for selection in selections:
            self._by_metric.setdefault(selection.metric, []).append(selection)
        self._targets: dict[str, _Series] = {}
        self._times: deque[float] = deque(maxlen=max([POINTS, *(one.points for one in self._growths.values())]))
        self._values = [(query, dict[Group, deque[Point]]()) for query in queries]

    def add(self, now: float, texts: Mapping[str, tuple[Mapping[str, str], str]]) -> None:
        """Adds what the targets have exported at `now`: the text of each, and labels of all its series."""
        for values in self._gauges.values():
            values.clear()
        for target, (labels, text) in texts.items():
            self._read(self._targets.setdefault(target, _Series()), labels, text)
        self._times.append(now)
        for totals in self._growths.values():
            totals.keep()
        for query, points in self._values:
            values = query.value(self)
            for group in values.keys() - points.keys():
                points[group] = deque(maxlen=POINTS)
            for group, series in points.items():
                value = values.get(group)
                series.append(None if value is None else float(f"{value:.5g}"))

    @property
    def times(self) -> list[float]:
        return list(self._times)[-POINTS:]

    def values(self, number: int) -> dict[Group, list[Point]]:
        """Returns the values of a query at `times`, by group; without groups that have none."""
        _, points = self._values[number]
        length = min(len(self._times), POINTS)
        nothing: list[Point] = [None]
        return {
            group: nothing * (length - len(series)) + list(series)
            for group, series in points.items()
            if any(point is not None for point in series)
        }

    def gauge(self, gauge: Gauge) -> Values:
        return self._gauges[gauge]

    def growth(self, growth: Growth) -> tuple[Values, float]:
        points = min(self._growths[growth].points, len(self._times))
        if points == 1:
            return {}, 0.0
        return self._growths[growth].grown(), self._times[-1] - self._times[-points]

    def _read(self, series: "_Series", labels: Mapping[str, str], text: str) -> None:
        for line in text.split("\n"):
            name, _, number = line.rpartition(" ")
            found = series.selected.get(name)
            try:
                if found is None:
                    found = series.selected[name] = [] if line.startswith("#") else self._select(line, labels)
                value = float(number) if found else 0.0
            except ValueError:
                # Another server's text must not end the gateway.
                continue
            if found:
                grown = series.grow(name, value)
                for selection, group in found:
                    if isinstance(selection, Growth):
                        self._growths[selection].add(group, grown)
                    elif isinstance(selection, Gauge) and (value > 0 or not selection.is_positive):
                        values = self._gauges[selection]
                        values[group] = HOW[selection.how](values[group], value) if group in values else value
        series.is_known = True

    def _select(self, line: str, labels: Mapping[str, str]) -> list[tuple[Selection, Group]]:
        """Returns the selections that a series belongs to, with its group in each."""
        metric = line.partition("{")[0].partition(" ")[0]
        if metric not in self._by_metric:
            return []
        (family,) = text_string_to_metric_families(line)
        found = {**family.samples[0].labels, **labels}
        groups = ((one, one.group(metric, found)) for one in self._by_metric[metric])
        return [(one, group) for one, group in groups if group is not None]


class _Series:
    """The series of one target: where each belongs, and the last value of each."""

    def __init__(self) -> None:
        self.selected: dict[str, list[tuple[Selection, Group]]] = {}
        self.is_known = False
        self._last: dict[str, float] = {}

    def grow(self, name: str, value: float) -> float:
        """Returns by how much a counter has grown since the last sample; one that has fallen began at 0 again.

        A series that is new at a known target began at 0, too: Prometheus leaves out its first events.
        """
        last = self._last.get(name, 0.0 if self.is_known else value)
        self._last[name] = value
        return value - last if value >= last else value


class _Totals:
    """The growth of each group since the first sample, as far back as the window reaches."""

    def __init__(self, growth: Growth) -> None:
        self.points = round((growth.window_s or WINDOW_S) / EVERY_S) + 1
        self._now: Values = {}
        self._kept: dict[Group, deque[float]] = {}

    def add(self, group: Group, grown: float) -> None:
        if group not in self._now:
            if len(self._now) >= GROUPS_MAX:
                return
            self._now[group] = 0.0
            # Before its first sample, it had not grown.
            self._kept[group] = deque([0.0], maxlen=self.points)
        self._now[group] += grown

    def keep(self) -> None:
        for group, total in self._now.items():
            self._kept[group].append(total)

    def grown(self) -> Values:
        return {group: kept[-1] - kept[0] for group, kept in self._kept.items()}
