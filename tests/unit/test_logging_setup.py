"""Log lines: the order of their fields, and their time and colours on a terminal."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tailrace.proto.runtime.logging_setup import LogFormat
from tailrace.proto.runtime.systemd import stream_id
from tests.harness.processes import CHECKOUT

LINE = "structlog.get_logger().info('turn ended', outcome='completed', code=None, cursor='', attempt=2, turn='t1')"


def log_line(form: LogFormat) -> str:
    script = (
        "import structlog\nfrom tailrace.proto.runtime.logging_setup import configure\n"
        f"configure('gateway', {form!r})\n{LINE}"
    )
    return subprocess.run(
        [sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, check=True, text=True
    ).stderr


def test_a_json_line_begins_with_the_turn_and_has_no_empty_field() -> None:
    line = log_line("json")
    fields = list(json.loads(line))
    assert fields[:2] == ["turn", "attempt"]
    assert set(fields) == {"turn", "attempt", "outcome", "role", "event", "level", "timestamp"}


@pytest.mark.parametrize(("form", "is_coloured"), [("console", False), ("colour", True)])
def test_a_line_on_a_terminal_has_local_time_with_milliseconds(form: LogFormat, *, is_coloured: bool) -> None:
    """Colours are in the format `colour` only."""
    line = log_line(form)
    assert ("\x1b[" in line) == is_coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", line)
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} \[info +\] turn ended turn=t1 attempt=2 outcome=completed role=gateway\n", plain
    )


def test_lines_of_an_event_loop_are_written_together_and_a_warning_at_once() -> None:
    """No line is lost or moved: a warning writes the lines before it, and the exit of the process the last ones."""
    script = """
import asyncio, os, sys, threading
import structlog
from tailrace.proto.runtime.logging_setup import WRITE_AFTER_S, configure

writes = []

class Counted:
    def write(self, text):
        writes.append([line.split()[3] for line in text.splitlines()])
    def flush(self):
        pass

async def log():
    sys.stderr = Counted()
    logger = structlog.get_logger()
    logger.info("a"); logger.info("b")
    assert writes == []
    await asyncio.sleep(2 * WRITE_AFTER_S)
    assert writes == [["a", "b"]], writes
    logger.info("c"); logger.warning("d")
    assert writes[1:] == [["c", "d"]], writes
    logger.info("e")
    thread = threading.Thread(target=logger.info, args=["f"])
    thread.start(); thread.join()
    assert writes[2:] == [["e", "f"]], writes
    await asyncio.sleep(2 * WRITE_AFTER_S)
    assert writes[3:] == [], writes
    logger.info("g")
    sys.stderr = sys.__stderr__

configure("gateway", "console", "info")
asyncio.run(log())
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, capture_output=True, check=True, text=True)
    assert re.fullmatch(r"\S+ \[info +\] g +role=gateway\n", found.stderr)


@pytest.mark.parametrize("is_journal", [False, True])
def test_lines_for_the_journal_have_their_priority(tmp_path: Path, *, is_journal: bool) -> None:
    """Each line of a traceback, too. A pipe or a file that the journal does not read gets none."""
    script = (
        "import logging, structlog\nfrom tailrace.proto.runtime.logging_setup import configure\n"
        "configure('gateway', 'console', 'debug')\nlogger = structlog.get_logger()\n"
        "logger.debug('d'); logger.info('i'); logger.warning('w'); logger.error('e')\n"
        "logging.getLogger('library').warning('l')\n"
        "try:\n    raise ValueError\nexcept ValueError:\n    logger.exception('x')\n"
    )
    with (tmp_path / "printed").open("wb") as printed:
        stream = stream_id(printed.fileno()) if is_journal else "1:2"
        environ = {**os.environ, "JOURNAL_STREAM": stream}
        subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, env=environ, stderr=printed, check=True)
    lines = (tmp_path / "printed").read_text().splitlines()
    priorities = [line[1] if line.startswith("<") else "" for line in lines]
    if is_journal:
        assert priorities[:5] == ["7", "6", "4", "3", "4"]
        assert set(priorities[5:]) == {"3"}
        assert len(priorities) > 6
    else:
        assert set(priorities) == {""}
