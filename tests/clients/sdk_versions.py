"""Runs older and newer SDKs while processes are killed, with Tailrace's transport and without: `make sdks`.

It writes tests/clients/sdk_versions.csv, of which docs/tables/PYTHON.md is made. It needs the network, and takes some
minutes. `make test-all` runs the versions of the lock files (test_sdk_resuming.py).
"""

import asyncio
import csv
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from tempfile import TemporaryDirectory
from typing import Any

from tests.clients import node
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.system import System

UV = Path(sys.executable).with_name("uv")
SCRIPT = Path(__file__).parent / "python/sdk_runs.py"
TABLE = Path(__file__).with_name("sdk_versions.csv")
# The dependencies of the client (client/pyproject.toml), and the SDKs.
CLIENT = ("httpx2>=2.16.2,<3", "anyio>=4.10,<5", "msgspec>=0.22,<1")
VERSIONS = (
    ("anthropic==0.50.0", "openai==1.109.1", "httpx==0.27.2"),
    ("anthropic==0.90.0", "openai==2.0.0"),
    ("anthropic==0.125.0", "openai==2.54.0"),
    ("anthropic==1.0.0", "openai==3.0.0"),
    ("anthropic==1.17.0", "openai==3.30.0"),
    ("anthropic==2.15.0", "openai==3.57.0"),
)
KINDS = {
    "anthropic": ("anthropic", "anthropic, blocking"),
    "openai": ("openai, chat", "openai, responses, blocking"),
}
# A second of text, without the thinking whose loss begins the answer again.
QUESTION = "#sim words=80 rate=80"
RUNS = 10
SEED = 90
DEADLINE_S = 400.0


def install(folder: Path, packages: tuple[str, ...]) -> Path:
    """Returns the Python of a new environment. Raises CalledProcessError."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin/python"
    subprocess.run([UV, "pip", "install", "--quiet", "--python", python, *CLIENT, *packages], check=True)
    return python


async def run_script(python: Path, *arguments: object) -> list[dict[str, Any]]:
    environ = {"HOME": python.parent, "PYTHONPATH": CHECKOUT}
    printed = await node.command([str(python), str(SCRIPT), *map(str, arguments)], environ, CHECKOUT, DEADLINE_S)
    return [json.loads(line) for line in printed.splitlines()]


async def kill_until(running: asyncio.Task[Any], system: System) -> Counter[str]:
    """Kills the gateway, then a generator, and so on, at random moments until the runs end. Counts the kills."""
    moments, kills = random.Random(SEED), Counter[str]()
    while not running.done():
        generator = system.generators[kills["generator"] % 2]
        for role, process in (("gateway", system.gateways[0]), ("generator", generator)):
            await asyncio.wait([running], timeout=moments.uniform(0.3, 1.5))
            if not running.done():
                await process.stop(SIGKILL)
                kills[role] += 1
                await process.start()
    return kills


def rows(
    versions: dict[str, list[str]], found: dict[str, list[dict[str, Any]]], kills: Counter[str]
) -> Iterator[dict[str, object]]:
    for sdk, kinds in KINDS.items():
        version, library = versions[sdk]
        row: dict[str, object] = {"SDK": sdk, "version": version, "HTTP library": library}
        row["kills of the gateway, of a generator"] = f"{kills['gateway']}, {kills['generator']}"
        for column, outcomes in found.items():
            own = [one for one in outcomes if one["kind"] in kinds]
            whole = sum(one.get("text") == words(80) for one in own)
            errors = Counter(one.get("error", "another text") for one in own if one.get("text") != words(80))
            row[column] = f"{whole} of {len(own)} whole" + "".join(f"; {error}" for error in sorted(errors))
        yield row


async def main() -> None:
    kinds = [kind for own in KINDS.values() for kind in own]
    table: list[dict[str, object]] = []
    with TemporaryDirectory() as folder:
        for number, packages in enumerate(VERSIONS):
            python = await asyncio.to_thread(install, Path(folder) / f"venv-{number}", packages)
            (versions,) = await run_script(python)
            home = Path(folder) / f"system-{number}"
            home.mkdir()
            async with System(home) as system:
                await system.start(generators=2)
                url = system.gateways[0].url
                columns = {"without the transport": "plain", "with ResumingTransport()": "-"}
                work = (run_script(python, url, "k", given, RUNS, QUESTION, *kinds) for given in columns.values())
                running = asyncio.ensure_future(asyncio.gather(*work))
                kills = await kill_until(running, system)
                found = dict(zip(columns, await running, strict=True))
            table += rows(versions, found, kills)
            print(*table[-2:], sep="\n", flush=True)
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator=os.linesep)
        writer.writeheader()
        writer.writerows(sorted(table, key=lambda row: str(row["SDK"])))


if __name__ == "__main__":
    asyncio.run(main())
