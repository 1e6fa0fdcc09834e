"""`tailrace init`: writes a configuration file with every setting."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tailrace.deploy.cli.arguments import add_json
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import config_file
from tailrace.deploy.local.config_path import NAME
from tailrace.proto.runtime.exit_status import EXIT_ERROR

DESCRIPTION = "Write a configuration file that lists every setting but secrets, with meaning and default."
EXAMPLES = """\
examples:
  tailrace init                        write tailrace.toml into the current folder
  tailrace init ~/.config/tailrace/tailrace.toml
  tailrace up --config production.toml

`tailrace` reads the file that --config names, or else tailrace.toml in the current folder, or else in the folder of
your user's settings. It also reads a file called .env beside it, for secrets: one NAME=VALUE in each line.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)
    parser.add_argument("file", type=Path, nargs="?", default=Path(NAME), metavar="FILE", help="default: %(default)s")


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Writes a new file that only its owner can read. Returns EXIT_ERROR if it exists or cannot be written."""
    try:
        args.file.parent.mkdir(parents=True, exist_ok=True)
        with args.file.open("x", encoding="utf-8") as file:
            args.file.chmod(0o600)
            file.write(config_file.example())
    except OSError as error:
        print(f"tailrace: cannot write {args.file}: {error.strerror}; name another file", file=sys.stderr)
        return EXIT_ERROR
    text = f"{args.file} lists every setting with its default, except secrets. Change it, then run `tailrace up`."
    print_result(args, text, file=args.file)
    return 0
