"""A run of all tests runs failed ones once more, and fails with those that fail again. A test ends at its timeout."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.run import run

CHECKOUT = Path(__file__).parents[2]
FLAKY_FIXTURE = """
import pathlib, pytest

@pytest.fixture(scope="module")
def once():
    marker = pathlib.Path("marker")
    if not marker.exists():
        marker.touch()
        raise OSError("only the first time")

@pytest.mark.parametrize("number", range(20))
def test_flaky(once, number): ...
"""
# Each test fails the first time.
FLAKY_TESTS = """
import pathlib, pytest

def fail_once(name):
    marker = pathlib.Path(name)
    if not marker.exists():
        marker.touch()
        raise OSError("only the first time")

""" + "".join(f"def test_{number}(): fail_once('{number}')\n" for number in range(6))
FLAKY_PROMISE = "# tests.promises\n" + FLAKY_TESTS.partition("def test_1")[0]
BROKEN = "def test_broken(): assert False\ndef test_right(): ...\n"
# The process ends before pytest can write down what failed.
ENDS = """
import os, pathlib

def test_ends():
    if not pathlib.Path("first").exists():
        pathlib.Path("first").touch()
        raise OSError
    os._exit(3)
"""


@pytest.mark.parametrize(
    ("files", "status", "shown"),
    [
        ({"test_flaky.py": FLAKY_FIXTURE}, 0, {"FLAKY: failed, then passed": 20}),
        (
            {"test_broken.py": BROKEN, "test_flaky.py": FLAKY_FIXTURE},
            1,
            {"FAILED TWICE: test_broken.py::test_broken": 1, "FLAKY: failed, then passed": 20},
        ),
        ({"test_flaky.py": FLAKY_TESTS.replace("def test_5", "def not_5")}, 0, {"FLAKY": 5, "5 flaky tests": 1}),
        ({"test_flaky.py": FLAKY_TESTS}, 1, {"FLAKY": 6, "6 flaky tests": 1}),
        ({"test_flaky.py": FLAKY_PROMISE}, 1, {"A FLAKY TEST OF A PROMISE: test_flaky.py::test_0": 1}),
        ({"test_ends.py": ENDS}, 1, {"FAILED TWICE: test_ends.py::test_ends": 1}),
        ({"test_right.py": "def test_right(): ..."}, 0, {"FLAKY": 0, "FAILED": 0}),
        ({f"test_{number}.py": BROKEN for number in range(11)}, 1, {"TWICE": 0, "once more": 0}),
    ],
    ids=["a fixture of many tests", "both", "five", "six", "a promise", "ends the process", "none", "too many files"],
)
def test_failed_tests_run_once_more(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    files: dict[str, str],
    status: int,
    shown: dict[str, int],
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert run(tmp_path, ["--import-mode=importlib"]) == status
    out = capfd.readouterr().out
    assert {text: out.count(text) for text in shown} == shown


@pytest.mark.timeout(180)
def test_quick_tests_leave_out_clients_long_tests_and_those_with_servers_that_hold_no_rule() -> None:
    """`make test` runs with `--quick`, and CI runs every test."""
    pytest.importorskip("openai", reason="tests/clients needs the packages of `make setup`")
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--quick"]
    files = [
        "tests/clients/test_htmx.py",
        "tests/integration/test_dashboards.py",
        "tests/features/usage/test_usage_api.py",
        "tests/integration/test_takeover.py",
    ]
    short_versions = ["tests/chaos/test_short.py", "tests/kills/test_kills.py", "tests/schedules/test_schedules.py"]
    done = subprocess.run(
        [*collect, *files, *short_versions], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert {line.partition(":")[0] for line in done.stdout.split("\n") if line.startswith("tests/")} == {
        "tests/integration/test_takeover.py",
        *short_versions,
    }
    assert "make test-all" in (CHECKOUT / ".ci/run").read_text()


def test_processes_of_tests_do_not_inherit_the_ignored_signal_of_nohup(tmp_path: Path) -> None:
    """Otherwise `tailrace up` would not stop when its terminal is closed, as a test of it expects."""
    program = "import signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_DFL)"
    test = f"""
import subprocess, sys

def test_child(): assert subprocess.check_output([sys.executable, "-c", {program!r}]) == b"True\\n"
"""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_child.py").write_text(test)
    (folder / "conftest.py").write_text("from tests.conftest import hangup\n__all__ = ['hangup']\n")
    command = [sys.executable, "-m", "pytest", "--numprocesses=0", "-c", str(CHECKOUT / "pyproject.toml"), str(folder)]
    done = subprocess.run(
        command, cwd=CHECKOUT, capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),  # as nohup does
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
