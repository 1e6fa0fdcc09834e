"""The wheels that are installed: of this checkout, and of the commit before it."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.harness.processes import CHECKOUT

UV = Path(sys.executable).with_name("uv")
BUILD = (UV, "build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable, "--wheel")
# pip replaces no wheel by one of the same version.
VERSION_BEFORE = "0.0.1"


class Wheels(NamedTuple):
    now: Path
    before: Path


def build(folder: Path, commit: str) -> Wheels:
    """Builds both wheels into `folder`. The one of `commit` has the version VERSION_BEFORE."""
    with tempfile.TemporaryDirectory() as other:
        archive = subprocess.run(["git", "archive", commit], cwd=CHECKOUT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "x"], cwd=other, input=archive, check=True)
        version = Path(other) / "proto/version.py"
        version.write_text(re.sub(r'(?m)^VERSION = ".*"', f'VERSION = "{VERSION_BEFORE}"', version.read_text()))
        return Wheels(_build(CHECKOUT, folder / "now"), _build(Path(other), folder / "before"))


def _build(checkout: Path, folder: Path) -> Path:
    subprocess.run([*BUILD, "--out-dir", folder, checkout], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel
