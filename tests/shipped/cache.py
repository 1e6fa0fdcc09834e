"""The cache of the runs: three Debian root file systems and wheels, which need the network once.

Each file's name has a hash of how it was made, so a changed list makes a new one.
"""

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from tests.harness.processes import CHECKOUT

SUITE = "trixie"
PYTHON = "3.13"
LOCK = CHECKOUT / "locks/container.lock"
# On the machine: the wheels, and this folder. A build of Docker finds the wheels at the address of its bridge.
WHEELS, ROOTS = "/srv/wheels", "/srv/roots"
WHEELS_URL = "http://172.17.0.1:8099"
PIP = ("python3", "python3-venv", "python3-pip", "python-is-python3", "ca-certificates")
PACKAGES = {
    # Instead of Docker's image of Python, on which the Dockerfile builds.
    "base": PIP,
    # Instead of the images of other projects that compose.yaml names.
    "services": (*PIP, "nginx-light", "prometheus", "prometheus-alertmanager", "busybox-static"),
    # The machine.
    "machine": (
        *("python3", "python3-venv", "ca-certificates", "systemd", "systemd-sysv", "dbus", "sudo", "openssl"),
        *("iproute2", "iptables", "procps", "curl", "docker.io", "docker-cli", "docker-buildx", "docker-compose"),
    ),
}
IN_DOCKER = ("[global]", "no-index=true", f"find-links={WHEELS_URL}/", f"trusted-host={WHEELS_URL.split('/')[2]}")
PIP_CONF = {
    "base": IN_DOCKER,
    "services": IN_DOCKER,
    "machine": ("[global]", "no-index=true", f"find-links={WHEELS}"),
}
OMITTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")

Say = Callable[[str], None]


class Cache(NamedTuple):
    """The files of the cache: archives of the roots by name, and the folder of the wheels."""

    folder: Path
    roots: dict[str, Path]
    wheels: Path

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Returns where the files are, or will be."""
        roots = {name: folder / f"{name}-{_digest(repr(_mmdebstrap(name)))}.tar" for name in PACKAGES}
        return cls(folder, roots, folder / f"wheels-{_digest(PYTHON + LOCK.read_text())}")


class NotPossible(Exception):
    """This machine lacks something: the message says what to do."""


def prepare(folder: Path, say: Say) -> None:
    """Makes what is missing, which needs the network, and removes what is old. Raises NotPossible."""
    _, roots, wheels = Cache.of(folder)
    for path in folder.glob("*-*"):  # also a machine that was left by SIGKILL
        if path not in (wheels, *roots.values()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, root in roots.items():
        if not root.exists():
            say(f"making {root.name}, once: {len(PACKAGES[name])} packages of Debian {SUITE} with their dependencies")
            _make_root(name, root)
    if not wheels.exists():
        say(f"downloading the wheels of {LOCK.name}, once")
        new = wheels.with_name("new-wheels")
        # For the machine's Python, whatever runs here.
        download = ["pip", "download", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
        _run([sys.executable, "-m", *download, "--python-version", PYTHON, "--dest", new, "-r", LOCK])
        new.rename(wheels)


def _mmdebstrap(name: str) -> list[str]:
    """Returns the command that makes a root, without its output and the mirror."""
    script = f"printf '%s\\n' {' '.join(PIP_CONF[name])} > \"$1/etc/pip.conf\""
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=tar"]
    command += ["--aptopt=APT::Install-Recommends false", *(f"--dpkgopt=path-exclude={path}" for path in OMITTED)]
    command += [f"--include={','.join(PACKAGES[name])}", f"--customize-hook={script}"]
    if name == "machine":
        # Only the run of Compose starts Docker.
        command += ['--customize-hook=chroot "$1" systemctl --quiet disable docker.socket docker containerd']
        command += [
            '--customize-hook=echo "127.0.0.1 localhost shipped" > "$1/etc/hosts"; echo shipped > "$1/etc/hostname"'
        ]
    return command


def _make_root(name: str, archive: Path) -> None:
    if shutil.which("mmdebstrap") is None:
        raise NotPossible("mmdebstrap is not on the PATH: apt-get install mmdebstrap")
    new = archive.with_name(f"new-{name}.tar")
    command = _mmdebstrap(name)
    command[1:1] = [f"--aptopt={option}" for option in _apt_options()]
    _run([*command, SUITE, new, _mirror()])
    new.rename(archive)


def _mirror() -> str:
    """Returns the mirror of Debian that this machine's apt has."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    if not found:
        raise NotPossible("apt knows no mirror of Debian: run it on Debian, after apt-get update")
    return found[0]


def _apt_options() -> list[str]:
    """Returns how this machine's apt reaches a mirror."""
    command = ["apt-config", "dump", "--no-empty", "--format", '%F "%v"%n', "Acquire"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if line.startswith(("Acquire::http", "Acquire::https", "Acquire::Check"))]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _run(command: Sequence[str | Path]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotPossible(f"{' '.join(map(str, command))}\n{(done.stdout + done.stderr)[-3000:]}")
