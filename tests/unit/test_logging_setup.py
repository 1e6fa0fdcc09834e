"""Log lines: the order of their fields, and their time and colours on a terminal."""

import json
import re
import subprocess
import sys

import pytest

from tailrace.proto.runtime.logging_setup import LogFormat
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
