"""Finds a copy of a checkout in the checkout's own `.venv`. `pip install .` makes it, and it never changes."""

import sys
import sysconfig
from pathlib import Path

ACTION = f"{sys.executable} -m pip uninstall --yes tailrace; rm -f {Path(sys.prefix, 'bin', 'tailrace')}; make setup"


def find(prefix: Path | None = None, packages: Path | None = None) -> Path | None:
    """Returns the copy in the folder `packages` of the venv `prefix`; None in a venv that belongs to no checkout.

    By default, both belong to the running Python. Only the Makefile of a checkout makes the folder `checkout`.
    """
    if not (prefix or Path(sys.prefix)).joinpath("checkout", "tailrace").exists():
        return None
    copy = (packages or Path(sysconfig.get_path("purelib"))) / "tailrace"
    return copy if copy.exists() else None
