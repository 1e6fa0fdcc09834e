"""A copy of the tree for a mutant to live in, and a scenario that is run there. It judges nothing."""

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutant import Edit

ROOT = Path(__file__).parents[2]
COPIED = ("proto", "gateway", "generators", "persistence", "deploy", "tests", "docs")
IGNORED = shutil.ignore_patterns("node_modules", "__pycache__", ".*")
# A sound tree takes a quarter of it on a busy machine.
SCENARIO_S_MAX = 150.0


def copy(folder: Path, edits: Sequence[Edit]) -> Path:
    """The tree with `edits`, in `folder`."""
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED)
    for edit in edits:
        edit.apply(folder)
    return folder


async def run(tree: Path, scenario: str, recorded: Path) -> None:
    """Runs a scenario of that tree, which records into `recorded`; fails when it breaks, or takes too long."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.mutants.scenarios",
        scenario,
        str(recorded),
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(SCENARIO_S_MAX):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    assert process.returncode == 0, said.decode()[-4000:]
