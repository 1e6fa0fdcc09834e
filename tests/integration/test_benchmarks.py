"""The comparison of `make bench`: an arm is measured, and a lost, repeated or cut word is noticed.

The help of each program in benchmarks/.
"""

import asyncio
import resource
import runpy
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.compare import attached_readers
from benchmarks.compare.__main__ import measure, measure_load, measure_or_leave_out, start
from benchmarks.compare.arms import ARMS, START_S, Arm, port_of, process
from benchmarks.compare.attached_readers import IdleStreams, Streams, readers_of
from benchmarks.compare.plot import bars
from benchmarks.compare.readers import read
from benchmarks.compare.report import Load, table


@pytest.mark.parametrize("name", ["floor", "bare"])
async def test_an_arm_is_measured_and_its_row_has_its_cpu_beside_that_of_tuned(name: str) -> None:
    with ExitStack() as stack:
        model = stack.enter_context(process(sys.executable, "-m", "benchmarks.compare.model"))
        arm = stack.enter_context(ARMS[name](f"http://127.0.0.1:{port_of(model)}"))
        sample = await measure(arm, turns=2, words=5, rate=50, idle=dict.fromkeys(arm.processes, 0.0))
    assert sample.sum_us > 0
    assert 0 < sample.p50_ms <= sample.p99_ms
    assert f"| {name} |" in table(Load(2, 50, 5, {name: [sample], "tuned": [sample]}))
    assert "| 1.00 |" in table(Load(2, 50, 5, {name: [sample], "tuned": [sample]}))


def test_a_chart_has_a_bar_for_each_arm_and_colours_those_of_tailrace() -> None:
    chart = bars("CPU", "µs", {"a load": {"floor": 1.5, "tailrace": 1560.0}})
    rows = ET.fromstring(chart).findall("{http://www.w3.org/2000/svg}rect")  # our own
    assert [row.get("class") for row in rows] == [None, "own"]
    assert float(rows[0].get("width", 0)) < float(rows[1].get("width", 0))
    assert "1.50 µs" in chart
    assert "1,560 µs" in chart


@pytest.mark.parametrize(
    ("numbers", "says"),
    [((0, 2), "word 2 came instead of word 1"), ((0, 0), "word 0 came"), ((0,), "ended after 1 of 2 words")],
    ids=["lost", "repeated", "cut"],
)
async def test_an_answer_that_is_not_whole_and_in_order_is_an_error(numbers: tuple[int, ...], says: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(b"w%06d-%016d " % (number, 0) for number in numbers))
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        with pytest.raises(RuntimeError, match=says):
            await read(Arm("one", server.sockets[0].getsockname()[1], "/chat", {}), words=2, rate=0)


async def test_an_arm_that_breaks_off_an_answer_is_left_out_unless_it_is_tailrace(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def cut(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        arm = Arm("nchan", server.sockets[0].getsockname()[1], "/", {})
        load = Load(turns=1, rate=50, words=2, samples={"nchan": []})
        await measure_load([arm], load, repeats=1)
        with pytest.raises(RuntimeError, match="ended after 0 of 2 words"):
            await measure_or_leave_out(arm._replace(is_tailrace=True), read(arm, words=2, rate=50), {})
    assert load.samples == {}
    assert "| nchan | broke off an answer |" in table(load)
    assert "LEFT OUT: nchan: the answer ended after 0 of" in capsys.readouterr().err


def test_an_arm_that_cannot_start_is_left_out_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def run(_: str) -> Iterator[Arm]:
        with process(sys.executable, "-c", "raise SystemExit('no module')") as started:
            yield Arm("tuned", port_of(started), "/", {})

    monkeypatch.setitem(ARMS, "tuned", run)
    monkeypatch.setitem(ARMS, "litellm", lambda _: process("/nowhere/litellm"))
    began = time.monotonic()
    with ExitStack() as stack:
        assert start(["litellm", "tuned"], [], "http://127.0.0.1:1", stack) == []
    assert time.monotonic() - began < START_S / 2
    reasons = capsys.readouterr().err
    assert "WITHOUT litellm: /nowhere/litellm does not exist" in reasons
    assert "no module" in reasons.partition("WITHOUT tuned: ")[2]


async def test_an_arm_that_is_too_slow_is_left_out() -> None:
    async def wait() -> int:
        raise TimeoutError

    left_out: dict[str, str] = {}
    assert await measure_or_leave_out(Arm("litellm", 0, "/", {}), wait(), left_out) is None
    assert left_out == {"litellm": "not finished in 60 s"}


async def test_a_reader_of_a_running_turn_fails_at_a_repeated_word() -> None:
    class Server(asyncio.Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            words = b"".join(b"data: w%06d-%016d \n\n" % (number, 0) for number in (0, 1, 1))
            transport.write(b"HTTP/1.1 200 OK\r\n\r\n" + words)

    loop = asyncio.get_running_loop()
    async with await loop.create_server(Server, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with readers_of(Arm("one", port, "/", {})) as readers:
            reader = await readers.attach("/")
            await reader.wait_for_words(2)
            with pytest.raises(RuntimeError, match="word 1 came instead of word 2"):
                await (await readers.attach("/")).wait_for_words(3)


def test_the_table_of_streams_has_medians() -> None:
    samples = [Streams(*([value] * 9)) for value in (1.0, 2.0, 30.0)]
    row = "| 2.00 s | 2.00 s | 2.0 µs | 2 ms | 2.0 µs | 3.0 kB | 4.0 s |"
    table = attached_readers.table({"tailrace": samples}, {"tailrace": IdleStreams(3.0, 4.0)})
    assert f"| tailrace{' | 2000.0 ms' * 4} {row}" in table


FOLDER = Path(__file__).parents[2] / "benchmarks"
PROGRAMS = sorted(file.stem for file in FOLDER.glob("*.py") if "if __name__ ==" in file.read_text())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", [*PROGRAMS, "compare"])
def test_the_help_of_a_program_starts_and_changes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 0
    assert f"usage: python -m benchmarks.{name} " in capsys.readouterr().out
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits
