"""Installs the systems that Tailrace is compared with: a venv, npm packages, and Redis and nchan from Debian.

`make bench` runs it. It prints what it cannot install, and the benchmark leaves that arm out.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.compare.arms import NCHAN, ROOT, SERVERS, VENV
from tests.clients.install import install, update_package_lists
from tests.clients.node import NODE, NPM

LOCK = ROOT / "locks/bench.lock"
# Its modification time is the time of the last installation.
STAMP = VENV / "installed"


def main() -> None:
    """Installs what is missing or out of date."""
    programs = {"redis-server": shutil.which("redis-server") is not None, "libnginx-mod-nchan": NCHAN.exists()}
    missing = [name for name, is_installed in programs.items() if not is_installed]
    if missing and not (update_package_lists() and install(missing)):
        names = " and ".join(missing)
        print(f"Cannot install {names} without root and apt-get: install them yourself, or go without their arms.")
    sources = (LOCK, SERVERS / "package-lock.json")
    if STAMP.exists() and all(STAMP.stat().st_mtime > source.stat().st_mtime for source in sources):
        return
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV], check=True)
    packages = ("--python", VENV / "bin/python", "--require-hashes", LOCK)
    subprocess.run([uv, "pip", "sync", "--quiet", *map(str, packages)], check=True)
    # npm starts the first Node on the PATH, which must be ours.
    environ = os.environ | {"PATH": f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run([NODE, NPM, "ci"], cwd=SERVERS, env=environ, check=True)
    STAMP.touch()


if __name__ == "__main__":
    main()
