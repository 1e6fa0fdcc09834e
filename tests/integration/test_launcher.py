"""`make setup` puts the `tailrace` of the help texts into .venv/bin."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.up import CHECKOUT

PACKAGES = ("tailrace", "deploy", "gateway", "generators", "persistence", "proto")


@pytest.mark.skipif(shutil.which("make") is None, reason="NO MAKE: the launcher is not tested on this machine")
def test_the_command_that_the_help_speaks_of_runs_from_any_folder(tmp_path: Path) -> None:
    """In a checkout whose path has a space, called where a folder has the name of ours, with arguments passed on."""
    checkout, elsewhere = tmp_path / "a checkout", tmp_path / "elsewhere"
    python = checkout / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in PACKAGES:
        (checkout / name).symlink_to(CHECKOUT / name)
    shutil.copy(CHECKOUT / "Makefile", checkout)
    (checkout / "requirements.lock").touch()
    (checkout / ".venv/installed").touch()
    (elsewhere / "deploy").mkdir(parents=True)
    (elsewhere / "deploy/__init__.py").touch()

    subprocess.run(["make", "--silent", "setup"], cwd=checkout, check=True, timeout=20)
    command = [str(checkout / ".venv/bin/tailrace"), "up", "--port", "a b"]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "tailrace up: argument --port: 'a b' is not a port from 0 to 65535; see `tailrace up --help`\n"
    )
