"""`python -m tests.shipped.home HOME WORK BEFORE`: the journey in one home, in the namespaces that tests.shipped makes.

WORK is an empty folder in that of the cache, BEFORE the commit that is installed first. Exit status 1 if a step has
failed.
"""

import csv
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from tests.harness.disk import MIB
from tests.shipped import wheels
from tests.shipped.cache import ROOTS, WHEELS, Cache
from tests.shipped.compose import run_compose
from tests.shipped.journey import Say, Step
from tests.shipped.machine import CommandFailed, Machine
from tests.shipped.systemd import run_one_machine, run_separate_units
from tests.shipped.wheels import Wheels

HOMES: dict[str, Callable[[Machine, Wheels, Say], list[Step]]] = {
    "up": run_one_machine,
    "units": run_separate_units,
    "compose": run_compose,
}
RESULT = Path(__file__).with_name("result.csv")
HEAD = ("run", "step", "longest pause", "words lost", "calls repeated")
# Disks of their own, in memory, which steps fill. They are there again after a reboot.
DISKS = ("var/lib/tailrace", "var/lib/nats", "var/lib/docker/volumes")
DISK_BYTES = 700 * MIB
VERSIONS = """
echo Debian $(cat /etc/debian_version)
dpkg-query --show --showformat '${Package} ${Version}\\n' systemd python3 docker.io docker-compose
echo Linux $(uname -r | cut -d- -f1)
"""


def main(home: str, work: Path, before: str) -> int:
    # Ctrl-C reaches this process, too: the one that has started it ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    began, cache = monotonic(), Cache.of(work.parent)

    def say(text: str) -> None:
        print(f"{home:8} {monotonic() - began:6.0f} s  {text}", flush=True)

    built = wheels.build(work, before)
    say("unpacking the machine")
    root = unpack(work / "root", cache)
    machine = Machine(root, work, work.name)
    try:
        machine.boot()
        say("booted")
        steps = HOMES[home](machine, built, say)
    except CommandFailed as error:
        say(f"FAILED: {error}")
        return 1
    failed = [step for step in steps if not step.is_green]
    say(f"{len(steps)} steps, {len(failed)} failed; the machine has {du(root)} MB")
    if not failed:
        keep(steps, machine.sh(VERSIONS).splitlines())
    return 1 if failed else 0


def unpack(root: Path, cache: Cache) -> Path:
    """Unpacks the machine, and mounts what is not of it: the cache, and disks."""
    root.mkdir()
    run("tar", "--extract", "--numeric-owner", "--file", cache.roots["machine"], "--directory", root)
    for path in (root / WHEELS[1:], root / ROOTS[1:], *(root / disk for disk in DISKS)):
        path.mkdir(parents=True)
    run("mount", "--bind", "--options", "ro", cache.wheels, root / WHEELS[1:])
    run("mount", "--bind", "--options", "ro", cache.folder, root / ROOTS[1:])
    for disk in DISKS:
        run("mount", "--types", "tmpfs", "--options", f"size={DISK_BYTES},mode=711", "shipped", root / disk)
    run("ip", "link", "set", "lo", "up")
    return root


def keep(steps: Iterable[Step], versions: Iterable[str]) -> None:
    """Writes the steps to RESULT, in the place of earlier ones of this home. No step has failed."""
    rows = [row for row in read_rows() if not any(row[0].startswith(f"{step.home}: ") for step in steps)]
    day = datetime.now(UTC).date().isoformat()
    for step in steps:
        cells = (step.step, f"{step.pause_s} s", str(step.words_lost), str(step.calls_repeated))
        rows.append([f"{step.home}: {', '.join(versions)}, {day}", *cells])
    with RESULT.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *sorted(rows, key=lambda row: row[0])])


def read_rows() -> list[list[str]]:
    if not RESULT.exists():
        return []
    with RESULT.open(newline="") as file:
        return list(csv.reader(file))[1:]


def du(path: Path) -> int:
    printed = subprocess.run(["du", "--summarize", "--one-file-system", "-m", path], capture_output=True, check=False)
    return int(printed.stdout.split()[0])


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
