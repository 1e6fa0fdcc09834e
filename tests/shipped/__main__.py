"""`make shipped` runs deploy/ in its real homes: systemd as PID 1 of a Debian machine, and Docker on it.

make shipped                           every home; tests/shipped/result.csv gets the steps
make shipped ARGS='--homes up'         `tailrace up` as docs/SYSTEMD.md installs it
make shipped ARGS='--before v0.1.0'    upgrades from another commit than the one before

In each home the commands of its page are run: an installation of the commit before, an upgrade, kill -9 of each
process, restarts, more and fewer generators, a reboot, a full disk. During each step a client reads an answer, which
the promises about turns judge. Exit status 1 if a step has failed; 2 if something is missing here.

It needs Linux, root (namespaces, mounts, cgroup v2), Debian's apt and mmdebstrap, and 5 GB of disk; the first run needs
the network, for 1.1 GB that stay in the cache. All of it ends with this process, also after Ctrl-C.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.harness.processes import CHECKOUT
from tests.shipped import cache
from tests.shipped.home import HOMES

PROGRAMS = ("unshare", "nsenter", "ip", "tar", "git")
DISK_BYTES = 5 * 10**9
# The mounts, the network and every process end with the process in them.
ISOLATE = ("unshare", "--net", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc")

# The kernel ends the processes in it one by one.
REMOVE_CGROUP = """
mount -t cgroup2 cgroup2 /mnt
for _ in $(seq 100); do
  test -d "/mnt/$1" || exit 0
  find "/mnt/$1" -depth -type d -exec rmdir {} + 2> /dev/null || sleep 0.1
done
exit 1
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="make shipped", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--homes", nargs="+", choices=HOMES, default=list(HOMES), metavar="HOME", help=", ".join(HOMES))
    parser.add_argument("--before", default="HEAD~1", metavar="COMMIT", help="installed first (default: %(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=CHECKOUT / ".shipped", metavar="FOLDER", help="(default: %(default)s)"
    )
    given = parser.parse_args()
    given.cache = given.cache.resolve()
    try:
        require(given.cache)
        with locked(given.cache):
            cache.prepare(given.cache, lambda text: print(text, flush=True))
            failed = [home for home in given.homes if run_home(home, given.cache, given.before)]
    except cache.NotPossible as error:
        print(f"make shipped: {error}", file=sys.stderr)
        return 2
    print(f"failed: {', '.join(failed)}" if failed else "every step is green")
    return 1 if failed else 0


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the cache for this process alone. Raises NotPossible."""
    with (folder / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise cache.NotPossible(f"another `make shipped` uses {folder}: wait, or choose another --cache") from None
        yield


def require(folder: Path) -> None:
    """Raises NotPossible if this machine cannot run it."""
    if os.geteuid() != 0:
        raise cache.NotPossible("namespaces and mounts take root: sudo make shipped")
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        raise cache.NotPossible(f"not on the PATH: {', '.join(missing)}")
    folder.mkdir(exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < DISK_BYTES:
        raise cache.NotPossible(f"{folder} has {free / 10**9:.1f} GB of free disk, and 5 are needed")


def run_home(home: str, folder: Path, before: str) -> int:
    """Returns the status of one home, of which nothing is left."""
    work = Path(tempfile.mkdtemp(prefix="shipped-", dir=folder))
    process = subprocess.Popen([*ISOLATE, sys.executable, "-m", "tests.shipped.home", home, work, before])
    try:
        return process.wait()
    finally:
        process.kill()
        process.wait()
        subprocess.run(["unshare", "--mount", "sh", "-euc", REMOVE_CGROUP, "sh", work.name], check=True)
        shutil.rmtree(work)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit("ended"))
    sys.exit(main())
