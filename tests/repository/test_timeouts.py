"""A test that hangs, or whose clean-up hangs, ends at its timeout, and the tests after it run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILE = """
import asyncio, time
import pytest, pytest_asyncio

async def hang():
    # Timers every millisecond: the signal arrives within a callback.
    while True:
        await asyncio.sleep(0.001)

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def ticks():
    count = [0]
    async def tick():
        while True:
            await asyncio.sleep(0.001)
            count[0] += 1
    task = asyncio.create_task(tick())
    yield count
    task.cancel()

@pytest_asyncio.fixture
async def hangs_at_its_end():
    yield
    await hang()

@pytest.mark.asyncio(loop_scope="session")
async def test_hangs(ticks):
    await hang()

@pytest.mark.asyncio(loop_scope="session")
async def test_goes_on(ticks):
    before = ticks[0]
    await asyncio.sleep(0.1)
    assert ticks[0] > before

async def test_fails_and_then_hangs(hangs_at_its_end):
    raise ValueError

def test_hangs_in_a_loop_of_its_own():
    asyncio.run(hang())

async def test_does_not_return_to_the_loop():
    time.sleep(60)

def test_hangs_without_a_loop():
    time.sleep(60)

def test_passes():
    pass
"""


@pytest.mark.timeout(60)
def test_what_hangs_ends_at_its_timeout(tmp_path: Path) -> None:
    (tmp_path / "test_hanging.py").write_text(FILE)
    (tmp_path / "conftest.py").write_text(
        "from tests.harness import timeouts\n"
        "timeouts.END_S = 0.5\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(timeouts.Timeouts())\n"
    )
    plugins = ["-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--timeout", "1", *plugins, "--rootdir", str(tmp_path)]
    root = Path(__file__).parents[2]
    command += ["-c", "/dev/null", "-o", f"pythonpath={root}", "-o", "asyncio_mode=auto", str(tmp_path)]
    environ = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=50, check=False)
    assert "5 failed, 2 passed, 1 error" in done.stdout, done.stdout
