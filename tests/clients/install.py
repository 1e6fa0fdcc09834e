"""Installs the clients that are no Python packages: npm's, from their lock, and Debian's Chromium. Chooses no version.

`make clients`; without root there is no Chromium, and the tests in it are skipped with a line that says so.
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
    """Whether apt-get could; it needs root."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return all(subprocess.run(command, env=environ, check=False).returncode == 0 for command in APT)


if __name__ == "__main__":
    main()
