"""`tailrace up` as a process: start, output, end."""

import ipaddress
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL, Signals

import msgspec

from tests.harness.forks import FORKING_UP, SPAWNED, run_to_end, start_fork
from tests.harness.until import until

CHECKOUT = Path(__file__).parents[2]
# Longer than the time-outs of `up`, so that a failure shows its error message, also on a machine with twenty busy
# processes.
START_S_MAX = 80.0
STOP_S_MAX = 20.0
# Without forks, a generator takes as long to start as all other processes together.
LEAN = ("--port", "0", "--generators", "1")


class ForkedUp:
    """A `tailrace up` that is a fork, as its Python processes are. It has the methods of Popen that tests use."""

    def __init__(self, arguments: Sequence[str], environ: Mapping[str, str], printed: Path) -> None:
        self._fork = start_fork(FORKING_UP, arguments, environ, printed)
        self.pid = self._fork.pid

    @property
    def returncode(self) -> int | None:
        return self._fork.returncode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        return self._fork.wait(timeout)

    def send_signal(self, number: Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(SIGKILL)


class Up:
    """One `tailrace up` on a free port, and its output.

    With `is_real`, `up` and its processes are new Python processes instead of forks, for tests of starts and processes.
    """

    def __init__(self, folder: Path, *arguments: str, is_real: bool = False, **environ: str) -> None:
        self.folder = folder / "data"
        self.printed = folder / "up.txt"
        self.command = [sys.executable, "-m", "tailrace", "up", "--data", str(self.folder), *arguments]
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ANTHROPIC_")}
        # Commands of the user who runs the tests do not find this `up`.
        inherited["XDG_STATE_HOME"] = str(folder / "state")
        self.printed.write_bytes(b"")
        self.process: subprocess.Popen[bytes] | ForkedUp
        if is_real:
            with self.printed.open("wb") as printed:
                self.process = subprocess.Popen(
                    self.command, cwd=CHECKOUT, env=inherited | environ, stdout=printed, stderr=printed
                )
        else:
            inherited[SPAWNED] = str(folder / "spawned.jsonl")
            self.process = ForkedUp(self.command[3:], inherited | environ, self.printed)

    @property
    def text(self) -> str:
        return self.printed.read_text()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    async def ready(self, deadline_s: float = START_S_MAX) -> str:
        """Waits until it is ready; returns its URL."""
        await until(lambda: self.process.poll() is not None or self.find_line("ready http://"), deadline_s)
        assert self.process.poll() is None, "\n".join(self.lines)
        return self.find_line("ready http://").removeprefix("ready ")

    def find_line(self, beginning: str) -> str:
        return next((line for line in self.lines if line.startswith(beginning)), "")

    def pids(self) -> dict[str, int]:
        """Returns the pids of its table of processes, by name."""
        rows = re.findall(r"^  ([a-z][a-z0-9-]*) +([0-9]+)  ", "\n".join(self.lines), re.MULTILINE)
        return {name: int(pid) for name, pid in rows}

    def read_spawned(self) -> list[tuple[str, list[str], dict[str, str]]]:
        """Returns module, command and environment of each Python process that it has started, without `is_real`."""
        lines = (self.printed.parent / "spawned.jsonl").read_bytes().splitlines()
        return [msgspec.json.decode(line, type=tuple[str, list[str], dict[str, str]]) for line in lines]

    def tree(self) -> list[int]:
        """Returns the pids of all of its descendants."""
        return [int(pid) for pid in descendants(self.process.pid)]

    def listening(self) -> dict[str, list[str]]:
        """Returns the listening addresses of each of its processes, as the kernel reports them."""
        return {name: addresses(pid) for name, pid in [("up", self.process.pid), *self.pids().items()]}

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()  # the kernel then kills its children
        self.process.wait()


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [found for child in map(int, children) for found in (child, *descendants(child))]


def addresses(pid: int) -> list[str]:
    """Returns the addresses on which a process accepts connections or datagrams: `127.0.0.1:8000`."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            inodes.add(descriptor.readlink().name.removeprefix("socket:["))
    found = []
    for table, listens in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == listens and f"{inode}]" in inodes:
                address, port = local.split(":")
                # The kernel writes each word of it as this machine reads numbers.
                words = [int(address[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(address), 8)]
                found.append(f"{ipaddress.ip_address(b''.join(words))}:{int(port, 16)}")
    return sorted(found)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def running(folder: Path, *arguments: str, is_real: bool = False, **environ: str) -> Iterator[Up]:
    up = Up(folder, *arguments, is_real=is_real, **environ)
    try:
        yield up
    finally:
        up.end()


def run_refused_up(*arguments: str, **environ: str) -> tuple[int, str]:
    """Returns status and message of an `up` that fails to start."""
    status, out, err = run_to_end("tailrace", ("up", *arguments), os.environ | environ, START_S_MAX)
    assert out == ""
    return status, err
