"""Writes the lock files in locks/ from pyproject.toml and three lists of requirements: `python -m tools.lock`.

`--audit` looks up known vulnerabilities of all locked packages instead. Both need the network.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
UV = Path(sys.executable).with_name("uv")
PIP = "pip==26.3"
COMPILE = ("pip", "compile", "--quiet", "--universal", "--python-version", "3.11", "--generate-hashes")
# Strict: a package that cannot be looked up is a failure.
AUDIT = (
    "tool",
    "run",
    "pip-audit@2.10.1",
    "--strict",
    "--disable-pip",
    "--require-hashes",
    "--progress-spinner",
    "off",
)


class Lock(NamedTuple):
    """A lock file: its source, the extras of pyproject.toml, and an earlier lock file whose versions it takes."""

    name: str
    source: str = "pyproject.toml"
    extras: tuple[str, ...] = ()
    like: str | None = None


EVERY_LOCK = (
    Lock("product"),
    Lock("dev", extras=("dev",), like="product"),
    Lock("test", extras=("test",), like="dev"),
    Lock("container", extras=("otlp", "postgres", "bedrock", "vertex"), like="dev"),
    Lock("pip", source="-"),
    Lock("docs", source="tools/requirements.txt"),
    Lock("litellm", extras=("litellm",)),
    Lock("clients", source="tests/clients/python/requirements.txt"),
    Lock("bench", source="benchmarks/compare/requirements.txt"),
)


def write(lock: Lock) -> None:
    """Writes one lock file. Raises CalledProcessError."""
    options: list[str] = [option for extra in lock.extras for option in ("--extra", extra)]
    if lock.like is not None:
        options += ["--constraint", f"locks/{lock.like}.lock"]
    command = [str(UV), *COMPILE, "--custom-compile-command", "make lock", *options, "-o", f"locks/{lock.name}.lock"]
    subprocess.run([*command, lock.source], cwd=ROOT, input=PIP, text=True, check=True)


def audit(lock: Path) -> bool:
    """Prints the known vulnerabilities of the packages in a lock file. Returns whether there is none."""
    return subprocess.run([UV, *AUDIT, "-r", lock], cwd=ROOT, check=False).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.lock", description=__doc__)
    parser.add_argument("--audit", action="store_true", help="look up known vulnerabilities of the locked packages")
    if parser.parse_args().audit:
        are_clean = [audit(lock) for lock in sorted(LOCKS.glob("*.lock"))]
        return 0 if all(are_clean) else 1
    for lock in EVERY_LOCK:
        write(lock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
