"""`tailrace audit`: shows the changes that operators have made, over `/v1/admin/audit`."""

import argparse
from collections.abc import Mapping
from itertools import islice

from tailrace.deploy.cli.arguments import add_connection, add_json, add_number
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.terminal_text import table

DESCRIPTION = "Show the changes of keys and limits that operators have made, newest first."
EXAMPLES = """\
examples:
  tailrace audit                        the last 50 changes: when, who, from which address, and what
  tailrace audit --last 1000
  tailrace audit --json | jq '.[] | {at, by, before, after}'

The key needs the scope `admin`.
"""
HEADINGS = ("TIME", "CHANGE", "TARGET", "TENANT", "BY", "ADDRESS", "ERROR")
PAGE = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--last", 50, "how many changes", 1, 100_000)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints the last `args.last` changes, newest first. Raises SettingsInvalid, GatewayFailed."""
    with connect(args, environ) as client:
        newest = client.items("/v1/admin/audit", {"limit": str(min(args.last, PAGE))})
        found = list(islice(newest, args.last))
    if args.json:
        print_json(found)
    else:
        fields = ("at", "action", "target", "tenant", "by", "address", "error")
        print(table([HEADINGS, *([str(one.get(field) or "") for field in fields] for one in found)]))
    return 0
