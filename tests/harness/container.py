"""Containers without a daemon: runs a Dockerfile's steps, and services of a Compose file, in namespaces.

The file system of a base image is that of this machine, below a layer of its own; its `python` is the interpreter of
the tests. All containers share one network namespace, so each copy of a service needs a port or an address of its own.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from signal import SIGKILL
from typing import Any, NamedTuple, Self

import msgspec
import pytest

STEP_S_MAX = 300.0
PACKAGES = "/packages"
STOP_S_MAX = 20.0
BASE_PATH = f"{sys.base_prefix}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@cache
def can_isolate() -> bool:
    """Whether this process may make namespaces and mount file systems in them."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    probe = ["unshare", "--mount", "--net", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=20).returncode == 0


needs_namespaces = pytest.mark.skipif(not can_isolate(), reason="namespaces and mounts take root")


class Instruction(NamedTuple):
    name: str
    text: str


def parse(dockerfile: str) -> list[Instruction]:
    """Returns the instructions, with continued lines joined."""
    lines = [line for line in dockerfile.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


class Image(msgspec.Struct):
    """The result of a stage of the Dockerfile: its root folder, and the command of its process."""

    root: Path
    environ: dict[str, str]
    workdir: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = []
    command: list[str] = []


class Host:
    """Namespaces for mounts and network, in which images are built and containers run: `with Host(folder) as host`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        holder = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", "echo; exec sleep infinity"]
        self._holder = subprocess.Popen(holder, stdout=subprocess.PIPE, start_new_session=True)
        assert self._holder.stdout is not None
        with self._holder.stdout:
            self._holder.stdout.readline()
        self.sh("ip link set lo up", network=True)
        return self

    def __exit__(self, *_: object) -> None:
        for process in (*self._processes, self._holder):
            # Its group: the workers of nginx outlive a killed master.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, SIGKILL)
            process.wait(STOP_S_MAX)

    def command_prefix(self, *, network: bool) -> list[str]:
        return ["nsenter", "--target", str(self._holder.pid), "--mount", *(["--net"] if network else [])]

    def sh(self, script: str, *arguments: object, network: bool = False) -> None:
        """Runs a script of sh in the namespaces. Without `network`, it has the machine's."""
        command = [*self.command_prefix(network=network), "sh", "-euc", script, "sh", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=STEP_S_MAX)
        assert done.returncode == 0, f"{script} {arguments}: {done.stdout[-2000:]}{done.stderr[-2000:]}"

    def build(self, dockerfile: str, context: Path, environ: Mapping[str, str]) -> Image:
        """Runs the instructions one by one, and returns the last stage. `environ` is added to that of each RUN.

        Each stage has the packages of this venv in PACKAGES, without Tailrace and pip.
        """
        stages: dict[str, Image] = {}
        image: Image | None = None
        for number, (name, text) in enumerate(parse(dockerfile)):
            if name == "FROM":
                image = self._base(f"stage-{number}")
                stages[text.partition(" AS ")[2] or "last"] = image
                continue
            assert image is not None
            self._step(name, text, image, stages, context, environ)
        assert image is not None
        return image

    def _base(self, name: str) -> Image:
        layer, root = self._folder / name, self._folder / name / "root"
        layer.mkdir()
        self.sh(
            'mount -t tmpfs tmpfs "$1"; mkdir "$1/upper" "$1/work" "$2"; '
            'mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$2"; chmod 755 "$2/root"; '
            'mount --rbind /dev "$2/dev"; mount --rbind /proc "$2/proc"; mount -t tmpfs tmpfs "$2/tmp"; '
            'mkdir "$1/packages" "$1/work-2" "$2$4"; '
            'mount -t overlay overlay -o "lowerdir=$3,upperdir=$1/packages,workdir=$1/work-2" "$2$4"; cd "$2$4"; '
            "rm -rf tailrace* _tailrace* __editable__* pip pip-*",
            *(layer, root, sysconfig.get_path("purelib"), PACKAGES),
        )
        return Image(root, {"PATH": BASE_PATH, "HOME": "/root"})

    def _step(
        self, name: str, text: str, image: Image, stages: Mapping[str, Image], context: Path, environ: Mapping[str, str]
    ) -> None:
        match name:
            case "RUN":
                self.sh('exec "$@"', *self._chroot(image, {**image.environ, **environ}), "sh", "-ec", text)
            case "COPY":
                flag = re.match(r"--from=(\S+) ", text)
                *sources, target = text.removeprefix(flag[0] if flag else "").split()
                source_root = stages[flag[1]].root if flag else context
                self.sh(
                    'target="$1"; root="$2"; shift 2; mkdir -p "$target"; cd "$root"; '
                    'for one in "$@"; do for path in ./$one; do '
                    'if [ -d "$path" ]; then cp -a "$path/." "$target"; else cp "$path" "$target"; fi; done; done',
                    *(f"{image.root}{target}", source_root, *sources),
                )
            case "ENV":
                for pair in shlex.split(text):
                    variable, _, value = pair.partition("=")
                    image.environ[variable] = re.sub(r"\$(\w+)", lambda found: image.environ[found[1]], value)
            case "WORKDIR":
                image.workdir = text
                self.sh('mkdir -p "$1"', f"{image.root}{text}")
            case "USER":
                image.user = text
            case "ENTRYPOINT":
                image.entrypoint = msgspec.json.decode(text)
            case "CMD":
                image.command = msgspec.json.decode(text)
            case "EXPOSE" | "STOPSIGNAL" | "HEALTHCHECK":
                pass
            case _:
                pytest.fail(f"the interpreter of Dockerfiles does not know {name}")

    @staticmethod
    def _chroot(image: Image, environ: Mapping[str, str]) -> list[str]:
        given = [f"{name}={value}" for name, value in environ.items()]
        move = 'cd "$1"; shift; exec "$@"'
        return [
            *("chroot", f"--userspec={image.user}", str(image.root)),
            *("env", "-i", *given, "sh", "-ec", move, "sh", image.workdir),
        ]

    def start(
        self,
        image: Image,
        command: Sequence[str],
        environ: Mapping[str, str],
        volumes: Mapping[str, Path],
        output: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Starts a container with a read-only root, an empty /tmp, and `volumes` by their paths in the container."""
        mounts = ['mount --rbind "$1" "$1"', 'mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"']
        for target, source in volumes.items():
            there = shlex.quote(f"{image.root}{target}")
            make = f"mkdir -p {there}" if source.is_dir() else f"mkdir -p $(dirname {there}); touch {there}"
            self.sh(make)
            mounts.append(f"mount --bind {shlex.quote(str(source))} {there}")
        # Remounting a bind changes this mount only: volumes and /tmp stay writable.
        mounts.append('mount -o remount,ro,bind "$1"')
        script = "; ".join(mounts) + '; shift; exec "$@"'
        process = subprocess.Popen(
            [
                *self.command_prefix(network=True),
                *("unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh", str(image.root)),
                *("setpriv", "--no-new-privs", *self._chroot(image, {**image.environ, **environ}), *command),
            ],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        self._processes.append(process)
        return process


def service(compose: Path, name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Returns a service of a Compose file with its variables replaced; one without value or default is an error."""

    def value(found: re.Match[str]) -> str:
        variable, operator, default = found.groups()
        assert variable in variables or operator != ":?", f"{variable} has no value"
        return variables.get(variable) or (default or "")

    text = re.sub(r"\$\{(\w+)(?:(:[-?])([^}]*))?\}", value, compose.read_text())
    found: dict[str, Any] = msgspec.yaml.decode(text)["services"][name]
    return found
