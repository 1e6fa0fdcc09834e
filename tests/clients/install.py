"""Installs what the tests need besides .venv: npm packages, clients in Python with older SDKs, programs from Debian.

`make clients` runs it. Without root, Debian's programs are not installed, and their tests are skipped.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.clients.node import NODE, NPM, SCRIPTS

ROOT = Path(__file__).parents[2]
# The libraries of the page at `/`: a test builds them again.
WEB = ROOT / "web"
# Each program with its package. `promtool` is part of `prometheus`, `amtool` of `prometheus-alertmanager`.
PROGRAMS = {
    # Of the script examples/ask.sh.
    "curl": "curl",
    "chromium": "chromium",
    "prometheus": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "nginx": "nginx",
    "haproxy": "haproxy",
    # Debian's command for clusters: the programs of the server are not on the path.
    "pg_ctlcluster": "postgresql",
}
# Not every distribution has them. The first is used instead of Chromium where it is installed (`node.find_browser`).
OPTIONAL = {
    "chromium-headless-shell": "chromium-headless-shell",
    "firefox-esr": "firefox-esr",
    # WebKit, the engine of Safari, and the display that its browser needs.
    "WebKitWebDriver": "webkit2gtk-driver",
    "Xvfb": "xvfb",
    # A file system that ignores permissions.
    "ntfs-3g": "ntfs-3g",
    "pgbouncer": "pgbouncer",
}
DAEMONS = ("prometheus", "prometheus-alertmanager", "nginx", "haproxy", "postgresql", "pgbouncer")


def main() -> None:
    # npm looks for its own Node on the path, and would find the machine's.
    path = f"{NODE.parent}{os.pathsep}{os.environ['PATH']}"
    for folder in (SCRIPTS, WEB):
        subprocess.run([NODE, NPM, "ci"], cwd=folder, env=os.environ | {"PATH": path}, check=True)
    install_python_clients()
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    optional = [program for program in OPTIONAL if shutil.which(program) is None]
    if not missing and not optional:
        return
    is_updated = update_package_lists()
    if missing and not (is_updated and install([PROGRAMS[program] for program in missing])):
        print(
            f"{', '.join(missing)}: not installed, so their tests are skipped. "
            "It takes root and apt-get; if apt-get failed, its message stands above."
        )
    elif is_updated:
        for program in optional:
            install([OPTIONAL[program]])


def install_python_clients() -> None:
    """Installs locks/clients.lock into a venv of its own: its SDKs are older than those in .venv."""
    uv = Path(sys.executable).with_name("uv")
    venv = ROOT / ".venv-clients"
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv], check=True)
    lock = ROOT / "locks/clients.lock"
    subprocess.run(
        [uv, "pip", "sync", "--quiet", "--python", venv / "bin/python", "--require-hashes", lock], check=True
    )


def update_package_lists() -> bool:
    """Downloads apt-get's lists of packages, which needs root; returns whether it has."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    return subprocess.run(["apt-get", "update", "--quiet"], check=False).returncode == 0


def install(packages: list[str]) -> bool:
    """Installs Debian packages, which needs root; returns whether it has. Their services do not stay running."""
    environ = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *packages]
    is_done = subprocess.run(command, env=environ, check=False).returncode == 0
    services = [package for package in packages if package in DAEMONS]
    if is_done and services and shutil.which("systemctl") is not None:
        # The tests start their own, on free ports.
        subprocess.run(["systemctl", "disable", "--now", *services], check=False)
    return is_done


if __name__ == "__main__":
    main()
