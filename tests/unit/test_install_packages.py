"""tools/install_packages.py: which package of how many `make setup` has reached."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

from tools.install_packages import Progress

SCRIPT = Path(__file__).parents[2] / "tools/install_packages.py"


def test_progress_names_the_package_of_the_lock_file_and_then_counts_what_is_installed(tmp_path: Path) -> None:
    (tmp_path / "old-1.dist-info").mkdir()
    progress = Progress(3, tmp_path)
    assert str(progress) == "  pip starts"
    progress.read(["Collecting anyio==4.1 (from -r x.lock (line 2))\n", "  Downloading anyio-4.1.whl (80 kB)\n"])
    assert str(progress) == "  package 1 of 3: anyio"
    progress.read(["Ignoring colorama: markers 'x' don't match\n", "Requirement already satisfied: old==1 in /x\n"])
    assert str(progress) == "  package 3 of 3: old"
    progress.read(["Installing collected packages: anyio, new\n"])
    assert str(progress) == "  installed 0 of 2 packages"
    (tmp_path / "anyio-4.1.dist-info").mkdir()
    # pip renames the folder of a package before it removes the package.
    (tmp_path / "~ld-1.dist-info").mkdir()
    assert str(progress) == "  installed 1 of 2 packages"


def test_a_failed_installation_has_the_status_and_the_error_of_pip(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    lock.write_text("no-such-package==1.0\n")
    command: list[str | Path] = [sys.executable, SCRIPT, "--no-index", "--disable-pip-version-check", "-r", lock]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "No matching distribution found for no-such-package==1.0" in done.stderr


def test_the_progress_is_one_line_of_a_narrow_terminal(tmp_path: Path) -> None:
    """A text that is longer than the line would begin a new line at each change."""
    (tmp_path / "x.lock").write_text("")
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 10))
    command: list[str | Path] = [sys.executable, SCRIPT, "--no-index", "--quiet", "-r", tmp_path / "x.lock"]
    environ = {**os.environ, "TERM": "xterm", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    subprocess.run(command, stderr=end, env=environ, check=False)
    os.close(end)
    shown = os.read(terminal, 10_000).decode()
    os.close(terminal)
    *texts, last = shown.split("\x1b[K\r")
    assert texts
    assert all(one.endswith("  pip sta") for one in texts)
    assert last == "\r\n"
