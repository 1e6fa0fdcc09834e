"""Runs every test, and each failed test once more: `python -m tests.run [PYTEST ARGUMENT…]`.

A test that passes the second time is flaky. The last lines list the flaky tests. The run fails with a test that fails
twice, with more than FLAKY_MAX flaky tests, and with a flaky test of a promise. Exit status: that of pytest, or 1.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Sequence
from itertools import groupby
from pathlib import Path

# Servers flush their files to the disk: in memory that takes no time, and other programs do not delay it.
MEMORY, BYTES_MIN = Path("/dev/shm"), 6 * 1024**3
ROOT = Path(__file__).parents[1]
# Failures in more files than this are no accident, and running them again would only cost time.
FILES_MAX = 10
FLAKY_MAX = 5
# The promises are judged by the functions of this module, and in these folders.
PROMISES, OF_PROMISES = "tests.promises", ("tests/chaos/", "tests/kills/", "tests/schedules/")


def pytest(root: Path, *arguments: str) -> int:
    """Runs pytest in a new process and returns its exit status. Its files are in memory if there is enough."""
    is_large = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= BYTES_MIN
    environ = os.environ | ({"TMPDIR": str(MEMORY)} if is_large and "TMPDIR" not in os.environ else {})
    # Keep bytecode even if the environment disables it: otherwise each worker compiles every test again.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "pytest", "-o", "tmp_path_retention_policy=failed", *arguments]
    return subprocess.run(command, cwd=root, env=environ, check=False).returncode


def file_of(test: str) -> str:
    """Returns the file of a node id."""
    return test.partition("::")[0]


def is_of_promise(root: Path, test: str) -> bool:
    """Returns whether a test judges a promise: no gap, no repeat, one end, one story, nothing forgotten."""
    file = file_of(test)
    return file.startswith(OF_PROMISES) or PROMISES in (root / file).read_text()


def report(root: Path, failed: Sequence[str], broken: Collection[str]) -> int:
    """Prints which tests failed once and twice, as the last lines of a run. Returns its exit status."""
    flaky = [test for test in failed if test not in broken]
    # The parameters of a test are one test.
    count = len({test.partition("[")[0] for test in flaky})
    of_promises = [test for test in flaky if is_of_promise(root, test)]
    for test in failed:
        print(f"{'FAILED TWICE' if test in broken else 'FLAKY: failed, then passed'}: {test}")
    for test in of_promises:
        print(f"A FLAKY TEST OF A PROMISE: {test}")
    print(f"{count} flaky tests; at most {FLAKY_MAX} are accepted, and none of a promise.", flush=True)
    return 1 if broken or of_promises or count > FLAKY_MAX else 0


def run(root: Path, arguments: Sequence[str]) -> int:
    """Runs the tests of the project in `root`, and each failed one once more.

    The failed tests of one file run again together, without the others: a fixture that failed once fails all tests that
    use it.
    """
    failures = root / ".pytest_cache/v/cache/lastfailed"

    def failed_tests() -> list[str]:
        return sorted(json.loads(failures.read_text())) if failures.exists() else []

    failures.unlink(missing_ok=True)
    status = pytest(root, *arguments)
    failed = failed_tests()
    files = [list(tests) for _, tests in groupby(failed, file_of)]
    if status != 1 or not 0 < len(files) <= FILES_MAX:
        return status
    print(f"\n{len(failed)} failed; each is run once more, the tests of one file together.", flush=True)
    broken = set[str]()
    for tests in files:
        status = pytest(root, *tests)
        # 1: pytest has written down which tests failed again. Any other failure stopped it before.
        broken.update(set(tests) & set(failed_tests()) if status == 1 else tests if status else ())
    return report(root, failed, broken)


def main(arguments: Sequence[str]) -> int:
    # A shell ignores SIGINT in what a script starts in the background, and children inherit that. Tests send SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(ROOT, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
