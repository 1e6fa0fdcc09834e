"""Installs the clients that are not Python packages: npm packages from their lock file, and Chromium from Debian.

`make clients` runs it. Without root, Chromium is not installed, and its tests are skipped.
"""

import os
import shutil
import subprocess

from tests.clients.node import NODE, NPM, SCRIPTS, chromium

APT = (
    ["apt-get", "update", "--quiet"],
    ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", "chromium"],
)


def main() -> None:
    # npm looks for its own Node on the path, and would find the machine's.
    path = f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([NODE, NPM, "ci"], cwd=SCRIPTS, env=os.environ | {"PATH": path}, check=True)
    if not (chromium() or is_installed()):
        print(
            "No Chromium here, and none could be installed (it takes root and apt-get): tests in a browser are skipped."
        )


def is_installed() -> bool:
    """Whether apt-get has installed it, which needs root."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return all(subprocess.run(command, env=environ, check=False).returncode == 0 for command in APT)


if __name__ == "__main__":
    main()
