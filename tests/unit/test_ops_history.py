"""The history of `/ops`: what queries give for samples of metrics, calculated by hand as Prometheus would."""

import pytest

from tailrace.features.ops.expressions import Expression, Gauge, Growth, Quantile, quantile
from tailrace.features.ops.gateway import counted_since
from tailrace.features.ops.history import GROUPS_MAX, POINTS, SAMPLE_EVERY_S, WINDOW_S, History, Point
from tailrace.features.ops.panels import DASHBOARDS
from tailrace.features.ops.sources import Snapshot, named_lines

ENDS, BUCKETS = "ends_total", "wait_seconds_bucket"
TICKS = round(WINDOW_S / SAMPLE_EVERY_S)


def newest(query: Expression, *samples: dict[str, str]) -> dict[tuple[str, ...], Point]:
    """Returns the newest values of a query after `samples`: the text of each target, by part."""
    return {group: values[-1] for group, values in history(query, *samples).values(0).items()}


def history(query: Expression, *samples: dict[str, str]) -> History:
    made = History([query])
    for number, texts in enumerate(samples):
        made.add(1000 + number * SAMPLE_EVERY_S, {part: ({"part": part}, text) for part, text in texts.items()})
    return made


def ends(**counts: float) -> str:
    return "# HELP ends_total Ends\n" + "".join(f'ends_total{{end="{end}"}} {count}\n' for end, count in counts.items())


def buckets(*counts: int, by: str = "") -> str:
    return "".join(
        f'{BUCKETS}{{le="{le}"{by}}} {count}.0\n' for le, count in zip(("1", "2", "+Inf"), counts, strict=True)
    )


@pytest.mark.parametrize(
    ("query", "samples", "expected"),
    [
        pytest.param(
            Growth(ENDS, ("end",)),
            ({"a": ends(whole=1), "b": ends(whole=7)}, {"a": ends(whole=6), "b": ends(whole=12)}),
            {("whole",): 1.0},
            id="processes are summed up, and what they counted before the first sample is no growth",
        ),
        pytest.param(
            Growth(ENDS, ("end",)),
            ({"a": ends(whole=0)}, {"a": ends(whole=0, failed=5)}),
            {("whole",): 0.0, ("failed",): 0.5},
            id="a new series of a known target has grown from 0",
        ),
        pytest.param(
            Growth(ENDS), ({"a": ends(whole=9)}, {"a": ends(whole=5)}), {(): 0.5}, id="a new process counts from 0"
        ),
        pytest.param(
            Growth(ENDS),
            ({"a": ends(whole=0)}, {}, {"a": ends(whole=10)}),
            {(): 0.5},
            id="a target that was away has grown since its last sample",
        ),
        pytest.param(
            Growth(ENDS),
            tuple({"a": ends(whole=min(number, 1) * 600)} for number in range(TICKS + 2)),
            {(): 0.0},
            id="growth before the window does not count",
        ),
        pytest.param(
            Growth(ENDS, window_s=3600, is_increase=True),
            tuple({"a": ends(whole=min(number, 1) * 600)} for number in range(TICKS + 2)),
            {(): 600.0},
            id="a query may have a longer window",
        ),
        pytest.param(
            Growth(ENDS, where='end=~"failed|cut"') / Growth(ENDS, where='end!="left"'),
            ({"a": ends(whole=0, cut=0, left=0)}, {"a": ends(whole=3, cut=1, left=6)}),
            {(): 0.25},
            id="ratio of selected series",
        ),
        pytest.param(
            Growth(ENDS, where='end="cut"') / Growth(ENDS), ({"a": ends(cut=1)},) * 2, {}, id="no value by 0 events"
        ),
        pytest.param(
            3600 * (Growth(ENDS) - Growth(ENDS, where='end="cut"')),
            ({"a": ends(whole=0, cut=0)}, {"a": ends(whole=5, cut=5)}),
            {(): 1800.0},
            id="difference, multiplied",
        ),
        pytest.param(Gauge("up", ("part",)), ({"a": "up 1\n", "b": "up 2\n"},), {("a",): 1.0, ("b",): 2.0}, id="gauge"),
        pytest.param(Gauge("up"), ({"a": "<a> 1\nup{x=y} 1\nup one\nup 1\n"},), {(): 1.0}, id="other text is skipped"),
        pytest.param(Gauge("up", how="max"), ({"a": "up 1\n", "b": "up 2\n"},), {(): 2.0}, id="maximum"),
        pytest.param(Gauge("up", how="min"), ({"a": "up 1\n", "b": "up 2\n"},), {(): 1.0}, id="minimum"),
        pytest.param(Gauge("up", is_positive=True), ({"a": "up 0\n"},), {}, id="zeros are left out"),
        pytest.param(Gauge("up"), ({"a": "up 1\n"}, {}), {(): None}, id="a target that is away has no gauge"),
        pytest.param(
            Quantile(0.5, Growth(BUCKETS, ("le", "by"))),
            ({"a": buckets(0, 0, 0, by=',by="x"')}, {"a": buckets(0, 10, 10, by=',by="x"')}),
            {("x",): 1.5},
            id="quantile",
        ),
        pytest.param(Quantile(0.5, Growth(BUCKETS, ("le",))), ({"a": buckets(1, 1, 1)},) * 2, {}, id="of nothing"),
    ],
)
def test_newest_value_of_a_query_is_that_of_prometheus(
    query: Expression, samples: tuple[dict[str, str], ...], expected: dict[tuple[str, ...], Point]
) -> None:
    assert newest(query, *samples) == expected


@pytest.mark.parametrize(
    ("share", "counts", "expected"),
    [
        (0.5, (4, 8, 8), 1.0),
        (0.25, (4, 8, 8), 0.5),
        (0.99, (0, 0, 8), 2.0),
        (1, (4, 8, 8), 2.0),
        (0.5, (0, 0, 0), None),
    ],
)
def test_quantile_is_interpolated_within_its_bucket(
    share: float, counts: tuple[float, ...], expected: float | None
) -> None:
    """As in Prometheus: beyond the last bound, a quantile is that bound."""
    assert quantile(share, list(zip((1.0, 2.0, float("inf")), counts, strict=True))) == expected


def test_history_is_bounded() -> None:
    """In time, and in the groups of a query."""
    text = "".join(f'ends_total{{end="{number}"}} 1\n' for number in range(GROUPS_MAX + 5))
    kept = history(Growth(ENDS, ("end",)), *({"a": text},) * (POINTS + 5))
    assert len(kept.times) == POINTS
    assert {len(values) for values in kept.values(0).values()} == {POINTS}
    assert len(kept.values(0)) == GROUPS_MAX


def test_a_part_whose_processes_do_not_answer_any_more_has_no_ready_process() -> None:
    """Other panels show a gap."""
    panels = {panel.title: panel.queries[0] for page in DASHBOARDS for panel in page.panels}
    ready, slots = panels["Processes that are ready"], panels["Slots in use"]
    text = "tailrace_ready 1\ntailrace_generator_turns_running 1\ntailrace_generator_slots 2\n"
    both = {"gateway": "tailrace_ready 1\n", "generators": text}
    samples = ({"gateway": both["gateway"]}, both, {"gateway": both["gateway"]})
    assert [(line.name, line.values) for line in named_lines(ready, history(ready.expression, *samples).values(0))] == [
        ("gateway", [1.0, 1.0, 1.0]),
        ("generators", [None, 1.0, 0.0]),
    ]
    (line,) = named_lines(slots, history(slots.expression, *samples).values(0))
    assert line.values == [None, 0.5, None]


@pytest.mark.parametrize(("ticks", "since"), [(0, 1000.0), (359, 1000.0), (360, None)])
def test_a_figure_of_the_last_hour_says_since_when_it_counts_until_the_samples_reach_back_so_far(
    ticks: int, since: float | None
) -> None:
    panels = {panel.title: panel for page in DASHBOARDS for panel in page.panels}
    hour, slots = panels["Invalid entries and records"], panels["Slots in use"]
    made = history(hour.queries[0].expression, *({"a": ""},) * (ticks + 1))
    sampled = Snapshot(made.times, SAMPLE_EVERY_S, [], [], made.since)
    assert (counted_since(hour, sampled), counted_since(slots, sampled)) == (since, None)
    of_prometheus = Snapshot(made.times, SAMPLE_EVERY_S, [], [])
    assert counted_since(hour, of_prometheus) is None
