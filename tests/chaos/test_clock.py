"""A clock that is put wrong while its process runs: the wall clock alone, and right again afterwards."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.clock import Clock

TELL = """
import sys, time, datetime
for _ in sys.stdin:
    print(time.time(), datetime.datetime.now().timestamp(), time.monotonic(), flush=True)
"""


@pytest.mark.rule("F19")
def test_only_the_wall_clock_is_wrong(tmp_path: Path) -> None:
    clock = Clock.made(tmp_path, "one")
    if clock is None:
        pytest.skip("there is no C compiler")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", TELL], env=clock.environ, stdin=pipe, stdout=pipe, text=True) as told:
        assert told.stdin is not None
        assert told.stdout is not None
        for wrong_s in (0, 3600, -3600, 0):
            before = clock.asked
            clock.jump(wrong_s)
            begun, monotonic = time.time(), time.monotonic()
            told.stdin.write("\n")
            told.stdin.flush()
            wall, also, other = map(float, told.stdout.readline().split())
            ended = time.time()
            assert begun - 1 <= wall - wrong_s <= ended + 1
            assert begun - 1 <= also - wrong_s <= ended + 1
            assert monotonic <= other <= time.monotonic()
            assert (clock.asked > before) == bool(wrong_s)
