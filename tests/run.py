"""Runs every test, and each failed test once more: `python -m tests.run [PYTEST ARGUMENT…]`.

A test that passes the second time is reported as flaky, and the run is green. Exit status: that of pytest.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

# Servers flush their files to the disk: in memory that takes no time, and other programs do not delay it.
MEMORY, BYTES_MIN = Path("/dev/shm"), 6 * 1024**3
ROOT = Path(__file__).parents[1]
# Failures in more files than this are no accident, and running them again would only cost time.
FILES_MAX = 10


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
    for test in failed:
        print(f"{'FAILED TWICE' if test in broken else 'FLAKY: failed, then passed'}: {test}", flush=True)
    return 1 if broken else 0


def main(arguments: Sequence[str]) -> int:
    # A shell ignores SIGINT in what a script starts in the background, and children inherit that. Tests send SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return run(ROOT, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
