"""`tailrace backup`: writes all state of a stopped `up` into one file."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from tailrace.deploy.cli.arguments import add_data, add_json
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import backup, data_dir
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.terminal_text import one_line
from tailrace.features.persistence import DATABASES

DESCRIPTION = "Write all state of a data directory into one file: the database, keys, limits, and the log of NATS."
LEFT_OUT_SHOWN = 20
EXAMPLES = """\
Stop `up` first: the log and the database belong together. The file contains what users wrote, and is private.

example:
  tailrace backup tailrace-2026-11-22.tar
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to write, which must not exist")
    add_json(parser)
    add_data(parser, "data directory", finds_running=False)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Writes the backup, and prints its size and the files that it left out.

    Raises UpRefused if `up` runs on the directory, if it has no state, or if the history is in PostgreSQL.
    """
    if DATABASES.is_url(environ.get("TAILRACE_DATABASE", "")):
        raise UpRefused("TAILRACE_DATABASE names a PostgreSQL server: back it up with pg_dump (docs/BACKUP.md)")
    backup.require_state(args.data)
    with data_dir.lock(args.data, "backup"):
        manifest = backup.write(args.data, args.file)
    files, size = manifest.files_count, sum(file.bytes for file in manifest.files)
    text = f"{args.file}: {files} files, {size:,} bytes, of {args.data}{describe_left_out(manifest)}"
    left_out = manifest.left_out
    print_result(args, text, file=args.file, data=args.data, files=files, bytes=size, left_out=left_out)
    return 0


def describe_left_out(manifest: backup.Manifest) -> str:
    """Returns lines that name the files missing in a backup; an empty text if it contains everything."""
    left_out = manifest.left_out
    lines = [f"\nleft out: {one_line(one.name)} ({one.why})" for one in left_out[:LEFT_OUT_SHOWN]]
    if more := left_out[LEFT_OUT_SHOWN:]:
        lines.append(f"\nleft out: {len(more)} more; --json names them all")
    return "".join(lines)
