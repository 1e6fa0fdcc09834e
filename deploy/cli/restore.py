"""`tailrace restore`: restores a data directory from a file of `tailrace backup`."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from tailrace.deploy.cli.arguments import add_data, add_json
from tailrace.deploy.cli.backup import describe_left_out
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import backup

DESCRIPTION = "Restore a data directory from a file of `tailrace backup`. The whole file is checked first."
EXAMPLES = """\
The directory must not exist, or be empty: move the old one aside. Then start `tailrace up` with it.

examples:
  tailrace restore tailrace-2026-11-22.tar
  tailrace restore --check tailrace-2026-11-22.tar      only check that the file is whole
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the file to restore")
    parser.add_argument("--check", action="store_true", help="check the file and change nothing")
    add_json(parser)
    add_data(parser, "data directory", finds_running=False)


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Checks the backup and restores it; with `--check` only checks it.

    Raises UpRefused if a file of the backup is damaged, or if the directory is not empty.
    """
    manifest = backup.check(args.file)
    if not args.check:
        backup.restore(args.file, args.data, manifest)
    what = "is whole" if args.check else f"is restored in {args.data}"
    made_at, version, files = manifest.made_at, manifest.tailrace, manifest.files_count
    print_result(
        args,
        f"{args.file} {what}: made {made_at} by Tailrace {version}, {files} files{describe_left_out(manifest)}",
        file=args.file,
        data=None if args.check else args.data,
        made_at=made_at,
        tailrace=version,
        files=files,
        left_out=manifest.left_out,
    )
    return 0
