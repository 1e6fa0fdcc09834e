"""A Debian machine: a root file system, booted with systemd as PID 1 in namespaces of its own.

It shares the network namespace with this process, which must have namespaces of its own for network, mounts and
processes (`tests.shipped.__main__` starts it in such): so neither a mount nor the machine outlives this process.
"""

import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

# Runs as PID 1 of the machine: $1 its root, $2 its cgroup. It makes what systemd expects of a container manager.
BOOT = r"""
echo 0 > "$2/cgroup.procs"
exec unshare --cgroup sh -euc '
cd "$1"
mount --rbind . . && cd "$1"
mount -t proc proc proc
# The settings of the kernel are those of the host, except those of the network.
mount --bind proc/sys proc/sys && mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net && mount -o remount,bind,rw proc/sys/net
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755,size=64m tmpfs dev
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0"; do
  set -- $node; mknod -m 666 dev/$1 c $2 $3
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p .host && pivot_root . .host && umount -l /.host && rmdir /.host
# As systemd does where it is not in a container.
mount --make-rshared /
exec env -i container=other PATH=/usr/sbin:/usr/bin /lib/systemd/systemd --log-target=journal --show-status=no
' sh "$1"
"""
ENVIRON = {"HOME": "/root", "LANG": "C.UTF-8", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
BOOT_S_MAX = 120.0
COMMAND_S_MAX = 600.0


class CommandFailed(Exception):
    """A command on the machine has failed: the message has the command and its output."""


class Machine:
    """A machine with this root. `folder` is for what is not of the machine; `cgroup` is the name of its cgroup."""

    def __init__(self, root: Path, folder: Path, cgroup: str) -> None:
        self.root = root
        self._folder = folder
        # A hierarchy of version 2 can be mounted beside those of version 1, without their controllers.
        (folder / "cgroup").mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", folder / "cgroup"], check=True)
        self._cgroup = folder / "cgroup" / cgroup
        self._cgroup.mkdir()

    def boot(self) -> None:
        """Starts systemd, and waits until it has started its units."""
        command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "sh", "-euc", BOOT]
        printed = self._folder / "boot.log"
        with printed.open("wb") as log:
            self._process = subprocess.Popen([*command, "sh", self.root, self._cgroup], stdout=log, stderr=log)
        deadline = time.monotonic() + BOOT_S_MAX
        while not self._is_up():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise CommandFailed(f"The machine did not boot: {printed.read_text()}")
            time.sleep(0.2)

    def _is_up(self) -> bool:
        if self._find_init() is None:
            return False
        return self.try_sh("systemctl is-system-running --wait").stdout.strip() in ("running", "degraded")

    def reboot(self) -> None:
        """Reboots as `systemctl reboot` does."""
        self.try_sh("systemctl reboot")
        self._process.wait(BOOT_S_MAX)
        self.boot()

    def _find_init(self) -> int | None:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with suppress(OSError):
            for pid in map(int, children.read_text().split()):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    return pid
        return None

    def command(self, *command: str | Path, environ: Mapping[str, str] | None = None) -> list[str]:
        """Returns a command of the host that runs `command` on the machine."""
        init = self._find_init()
        if init is None:
            raise CommandFailed("The machine does not run.")
        enter = ["nsenter", "--target", str(init), "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd"]
        variables = [f"{name}={value}" for name, value in (ENVIRON | dict(environ or {})).items()]
        return [*enter, "env", "-i", *variables, *map(str, command)]

    def try_sh(self, script: str, cwd: str = "/root") -> subprocess.CompletedProcess[str]:
        """Runs a script of sh; returns its status and its whole output. Raises CommandFailed if it takes too long."""
        command = self.command("sh", "-euc", f"cd {cwd}\n{script}")
        try:
            return subprocess.run(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=COMMAND_S_MAX
            )
        except subprocess.TimeoutExpired:
            raise CommandFailed(f"not within {COMMAND_S_MAX:.0f} s: {script}") from None

    def sh(self, script: str, cwd: str = "/root") -> str:
        """Runs a script of sh; returns its output. Raises CommandFailed."""
        done = self.try_sh(script, cwd)
        if done.returncode:
            raise CommandFailed(f"{script}\nstatus {done.returncode}: {done.stdout[-3000:]}")
        return done.stdout.strip()
