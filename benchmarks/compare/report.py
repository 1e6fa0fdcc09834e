"""The results of a comparison as data, as plots, and as the tables of docs/BENCHMARKS.md."""

import statistics
from pathlib import Path

import msgspec

from benchmarks.compare import attached_readers, plot
from benchmarks.compare.attached_readers import IdleStreams, Streams

RESULT = Path(__file__).with_name("result.json")
IMAGES = Path(__file__).parents[2] / "docs/images"
# The name of each plot, its title, its unit, and the field of a sample.
PLOTS = (
    ("cpu", "CPU a delta, all processes", "µs", "sum_us"),
    ("delay", "Delay of a delta, median", "ms", "p50_ms"),
)


class Sample(msgspec.Struct):
    """One measurement of one arm."""

    p50_ms: float
    """The median time from the model's delta to the reader's bytes."""
    p99_ms: float
    first_ms: float
    """The median time from the POST to the first word of the answer."""
    took_s: float
    cpu_us: dict[str, float]
    """Microseconds of CPU for each delta, by role."""

    @property
    def sum_us(self) -> float:
        return sum(self.cpu_us.values())


class Load(msgspec.Struct):
    """All samples of one load: `turns` answers at once, each of `words` deltas, `rate` a second (0: at full speed)."""

    turns: int
    rate: int
    words: int
    samples: dict[str, list[Sample]]
    load_average: float = 0.0
    left_out: dict[str, str] = {}
    """The arms that were left out, with the reason. They have no samples."""

    @property
    def title(self) -> str:
        speed = f"{self.rate} deltas a second" if self.rate else "at full speed"
        turns = "1 turn of" if self.turns == 1 else f"{self.turns} turns at once, each of"
        return f"{turns} {self.words} deltas, {speed}"


class Result(msgspec.Struct):
    """A whole run."""

    at: str
    cores: int
    loads: list[Load] = []
    streams: dict[str, list[Streams]] = {}
    """Readers of running turns, by arm."""
    idle_streams: dict[str, IdleStreams] = {}


def table(load: Load) -> str:
    """Returns a Markdown table: medians, the range of CPU, and the ratio of each arm's CPU to that of `tuned`."""
    tuned = load.samples.get("tuned")
    lines = [
        f"**{load.title}**, load average {load.load_average:.1f}",
        "",
        "| | delay p50 | delay p99 | first word | deltas/s | CPU a delta | range | ratio to `tuned` | by process |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, samples in load.samples.items():
        p50, p99, first, cpu = (_median(samples, key) for key in ("p50_ms", "p99_ms", "first_ms", "sum_us"))
        reached = load.turns * load.words / _median(samples, "took_s")
        sums = [sample.sum_us for sample in samples]
        roles = ", ".join(
            f"{role} {statistics.median(sample.cpu_us[role] for sample in samples):.0f}" for role in samples[0].cpu_us
        )
        ratio = f"{cpu / _median(tuned, 'sum_us'):.2f}" if tuned else ""
        lines.append(
            f"| {name} | {p50:.2f} ms | {p99:.1f} ms | {first:.1f} ms | {reached:,.0f} | {cpu:.0f} µs "
            f"| {min(sums):.0f} to {max(sums):.0f} | {ratio} | {roles} |"
        )
    lines += [f"| {name} | {why} | | | | | | | |" for name, why in load.left_out.items()]
    return "\n".join(lines) + "\n"


def _medians(load: Load, key: str) -> dict[str, float]:
    """Returns the median of a figure for each arm."""
    return {name: _median(samples, key) for name, samples in load.samples.items()}


def _median(samples: list[Sample], key: str) -> float:
    return float(statistics.median(getattr(sample, key) for sample in samples))


def write(result: Result) -> None:
    """Writes the result and its plots."""
    RESULT.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    for name, title, unit, value in PLOTS:
        rows = {load.title: _medians(load, value) for load in result.loads}
        (IMAGES / f"benchmark-{name}.svg").write_text(plot.bars(title, unit, rows))


def read() -> Result:
    """Returns the result of the last complete run."""
    return msgspec.json.decode(RESULT.read_bytes(), type=Result)


def tables(result: Result) -> str:
    """Returns the tables of all loads, and of the readers of running turns, in Markdown."""
    repeats = max(len(samples) for load in result.loads for samples in load.samples.values())
    head = f"Measured on {result.at}, {result.cores} cores, medians of {repeats} repeats in changing order.\n"
    streams = (
        f"**Readers that attach to a running turn**\n\n{attached_readers.table(result.streams, result.idle_streams)}"
    )
    return "\n".join([head, *map(table, result.loads), streams])
