"""The wrong clock changes the wall clock of a running process, not its monotonic clock."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.clock import Clock

PRINT_CLOCKS = """
import sys, time, datetime
for _ in sys.stdin:
    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)
"""


@pytest.mark.rule("F19")
def test_a_jump_changes_the_wall_clock_only(tmp_path: Path) -> None:
    clock = Clock.create(tmp_path, "one")
    if clock is None:
        pytest.skip("there is no C compiler")
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", PRINT_CLOCKS], env=clock.environ, stdin=pipe, stdout=pipe, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for wrong_s in (0, 3600, -3600, 0):
            before = clock.wrong_readings
            clock.jump(wrong_s)
            begun, monotonic = time.time(), time.monotonic()
            process.stdin.write("\n")
            process.stdin.flush()
            wall, also, other = map(float, process.stdout.readline().split())
            ended = time.time()
            assert begun - 1 <= wall - wrong_s <= ended + 1
            assert begun - 1 <= also - wrong_s <= ended + 1
            assert monotonic <= other <= time.monotonic()
            assert (clock.wrong_readings > before) == bool(wrong_s)
