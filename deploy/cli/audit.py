"""`tailrace audit`: shows the changes that operators have made, over `/v1/admin/audit`."""

import argparse
from collections.abc import Mapping
from typing import Any

import msgspec

from tailrace.deploy.cli.arguments import add_connection, add_json, add_number
from tailrace.deploy.cli.connection import connect
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


def run(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    found, after = list[dict[str, Any]](), ""
    with connect(given, environ) as client:
        while after is not None and len(found) < given.last:
            params = {"limit": str(min(PAGE, given.last - len(found)))} | ({"after": after} if after else {})
            page = client.request("GET", "/v1/admin/audit", params=params)
            found, after = found + page["data"], page["next"]
    if given.json:
        print(msgspec.json.encode(found).decode())
    else:
        fields = ("at", "action", "target", "tenant", "by", "address", "error")
        print(table([HEADINGS, *([str(one.get(field) or "") for field in fields] for one in found)]))
    return 0
