"""The result of a command: a text, or with `--json` a line of JSON."""

import argparse

import msgspec


def print_result(args: argparse.Namespace, text: str, **fields: object) -> None:
    """Prints `text`, or with `--json` the fields as one line of JSON."""
    print(msgspec.json.encode(fields, enc_hook=str).decode() if args.json else text)
