"""`tailrace migrate-database`: copies the history from SQLite to PostgreSQL, or back."""

import argparse
import asyncio
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

from tailrace.deploy.cli.arguments import add_json
from tailrace.deploy.cli.copy_database import TableDigest, copy_database
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import data_dir
from tailrace.deploy.local.errors import UpRefused
from tailrace.features.persistence import DATABASES
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "Copy the history from one database into an empty one, and compare both."
EXAMPLES = """\
A database is the path of a SQLite file, or a postgresql:// URL. Stop persistence first; afterwards start it with the
new database in TAILRACE_DATABASE. The old one is not changed. An incomplete copy leaves no rows.

example:
  tailrace migrate-database .tailrace/tailrace.db "$URL"
"""
BUSY_TIMEOUT_S = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("source", metavar="FROM", help="the database to copy")
    parser.add_argument("target", metavar="TO", help="the database to write, which must be new or empty")


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Copies all tables; prints the numbers of rows and the digests, which both databases have.

    Raises SettingsInvalid for a source that is not a database, UpRefused if `up` uses the directory of one database,
    StoreError.
    """
    source = Path(args.source)
    if not DATABASES.is_url(args.source) and not (data_dir.exists(source) and source.is_file()):
        raise SettingsInvalid(f"{args.source!r} is not a file: name the database to copy")
    with ExitStack() as stack:
        parents = (Path(where).parent for where in (args.source, args.target) if not DATABASES.is_url(where))
        # Not Path.resolve, which raises RuntimeError for a loop of links: opening the database refuses the loop.
        for folder in {Path(os.path.realpath(parent)) for parent in parents}:
            if holder := data_dir.find_holder(folder):
                raise UpRefused(f"the data directory {folder} is in use by {holder}: stop it first")
            # Other folders than data directories get no such file.
            if (folder / data_dir.LOCK).exists():
                stack.enter_context(data_dir.lock(folder, "migrate-database"))
        copied = asyncio.run(_copy(args.source, args.target))
    lines = [f"{table.table:<15} {table.rows:>12,} rows  {table.digest[:16]}" for table in copied]
    lines.append(f"{DATABASES.display(args.source)} and {DATABASES.display(args.target)} contain the same")
    print_result(args, "\n".join(lines), tables=[table._asdict() for table in copied])
    return 0


async def _copy(source: str, target: str) -> list[TableDigest]:
    async with AsyncExitStack() as stack:
        opened = []
        for where in (source, target):
            opened.append(await DATABASES.open(where, busy_timeout_s=BUSY_TIMEOUT_S))
            stack.push_async_callback(opened[-1].close)
        return await copy_database(*opened)
