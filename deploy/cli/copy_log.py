"""`tailrace copy-log`: copies the store of one stopped nats-server into stores for a cluster of three."""

import argparse
import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tailrace.deploy.cli.arguments import add_json
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import migrate_log, nats_cluster, nats_server
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.options import Options

DESCRIPTION = "Copy the store of one stopped nats-server into new stores for a cluster of three."
EXAMPLES = """\
A cluster does not see the streams that one server has stored. This command starts the old server on a copy of its
store, and three new ones beside it, on free ports of the loopback; it copies all streams with their sequences and
consumers, and stops the servers. The old store is only read. docs/ONE_TO_THREE.md has all steps.

example:
  tailrace copy-log /var/lib/nats moved      writes moved/nats-1, moved/nats-2 and moved/nats-3
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", type=Path, metavar="STORE", help="the folder of the old server's log: its `--store`")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    add_json(parser)


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Writes one store for each server of `nats-config`, and prints their paths. Raises UpRefused, LogUnavailable."""
    if not nats_server.is_of_single_server(args.store):
        raise UpRefused(
            f"{args.store} has no log of a single nats-server: name the folder that `--store` of its configuration "
            "names, and run the command as the user of nats-server"
        )
    os.umask(0o077)
    try:
        args.folder.mkdir()
    except OSError as error:
        raise UpRefused(f"cannot make {args.folder} ({error.strerror}): name a new folder") from error
    try:
        stores = asyncio.run(copy(args.store.resolve(), args.folder.resolve()))
    except BaseException:
        shutil.rmtree(args.folder, ignore_errors=True)
        raise
    print_result(args, "\n".join(map(str, stores)), stores=stores)
    return 0


async def copy(store: Path, folder: Path) -> list[Path]:
    """Copies the log in `store` into one store for each server of a cluster, below `folder`; returns their paths.

    Raises UpRefused if a server writes to `store` meanwhile.
    """
    options = Options(data_dir=folder, cluster=True, sync="default")
    # The old server would write to its store.
    old = folder / "old"
    before = _file_states(store)
    try:
        await asyncio.to_thread(shutil.copytree, store, old / nats_server.STORE)
    except OSError as error:
        _require_unchanged(store, before)
        raise UpRefused(f"{store} cannot be copied into {folder}: {error}") from error
    _require_unchanged(store, before)
    server = nats_server.new_spec(
        old, sync="default", file_bytes_max=nats_server.storage_limit(old / nats_server.STORE)
    )
    stage = folder / migrate_log.STAGE
    console = Console(sys.stderr, width=len("up"), coloured=False)
    await migrate_log.copy([server], options, stage, console, keeps_limits=True)
    shutil.rmtree(old)
    stores = [folder / name for name in nats_cluster.names()]
    for path in stores:
        (stage / nats_cluster.DIRECTORY / path.name / nats_server.STORE).rename(path)
    shutil.rmtree(stage)
    _require_unchanged(store, before)
    # The copy was not synced message by message.
    os.sync()
    return stores


def _require_unchanged(store: Path, before: dict[Path, tuple[int, int]]) -> None:
    if _file_states(store) != before:
        raise UpRefused(
            f"{store} has changed meanwhile, so its server runs, and the copy, which lacks entries, was deleted: stop "
            "the gateways, the generators, persistence and nats-server, and try again"
        )


def _file_states(store: Path) -> dict[Path, tuple[int, int]]:
    """Returns the size and the time of the last change of each file and folder."""
    states = {}
    for path in store.rglob("*"):
        with suppress(FileNotFoundError):  # its server has deleted the file meanwhile
            states[path] = (path.stat().st_size, path.stat().st_mtime_ns)
    return states
