"""Runs every test, and each failed test once more by itself: `python -m tests.run [PYTEST ARGUMENT…]`.

A test that passes alone is reported as flaky, and the run is green. Exit status: that of pytest.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Servers flush their files to the disk: in memory that takes no time, and other programs do not delay it.
MEMORY, BYTES_MIN = Path("/dev/shm"), 6 * 1024**3
ROOT = Path(__file__).parents[1]
FAILED = ROOT / ".pytest_cache/v/cache/lastfailed"
# More failures than this are no accident, and running them again would only cost time.
RERUNS_MAX = 10


def pytest(*arguments: str) -> int:
    """Runs pytest in a new process and returns its exit status. Its files are in memory if there is enough."""
    is_large = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= BYTES_MIN
    environ = os.environ | ({"TMPDIR": str(MEMORY)} if is_large and "TMPDIR" not in os.environ else {})
    # Keep bytecode even if the environment disables it: otherwise each worker compiles every test again.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "pytest", "-o", "tmp_path_retention_policy=failed", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environ, check=False).returncode


def failed_tests() -> list[str]:
    """Returns the node ids of the tests that failed in the last run."""
    return sorted(json.loads(FAILED.read_text())) if FAILED.exists() else []


def main(arguments: Sequence[str]) -> int:
    # A shell ignores SIGINT in what a script starts in the background, and children inherit that. Tests send SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    FAILED.unlink(missing_ok=True)
    status = pytest(*arguments)
    failed = failed_tests()
    if status != 1 or not 0 < len(failed) <= RERUNS_MAX:
        return status
    print(f"\n{len(failed)} failed; each is run once more by itself.", flush=True)
    broken = [test for test in failed if pytest(test) != 0]
    for test in failed:
        print(f"{'FAILED TWICE' if test in broken else 'FLAKY: failed, then passed alone'}: {test}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
