"""The result of a command: a text, or with `--json` a line of JSON."""

import argparse
import sys
from typing import TextIO

import msgspec

from tailrace.deploy.local.terminal_text import one_line


def print_result(args: argparse.Namespace, text: str, **fields: object) -> None:
    """Prints `text`, or with `--json` the fields as one line of JSON."""
    if args.json:
        print_json(msgspec.to_builtins(fields, enc_hook=str))
    else:
        print(text)


def print_json(value: object, *, is_error: bool = False) -> None:
    """Prints `value` as one line of JSON, to the standard error if `is_error`."""
    output = sys.stderr if is_error else sys.stdout
    print(json_line(value, output), file=output, flush=True)


def json_line(value: object, output: TextIO) -> str:
    """Returns `value` as one line of JSON for `output`.

    For a terminal, without characters that control it: JSON has escapes for only some of these.
    """
    line = msgspec.json.encode(value).decode()
    return one_line(line) if output.isatty() else line
