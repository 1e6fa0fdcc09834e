"""`tailrace sessions`: lists the sessions."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice

from tailrace.deploy.cli.arguments import add_connection, add_json, add_number
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.conversations import Record, excerpt, local_time, print_table
from tailrace.deploy.cli.result import print_json

DESCRIPTION = "List the sessions, newest first."
EXAMPLES = """\
examples:
  tailrace sessions
  tailrace sessions --json | jq -r '.[].session'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--limit", 50, "the maximum number of lines", 1, 100_000)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints at most `args.limit` sessions, newest first. Raises SettingsInvalid, GatewayFailed."""
    with connect(args, environ) as client:
        found = list(islice(client.sessions(), args.limit))
    if args.json:
        print_json(found)
        return 0
    headings = ("SESSION", "TURNS", "TOKENS", "COST $", "LAST USED", "TITLE")
    print_table(headings, map(session_row, found), "no sessions")
    return 0


def session_row(session: Record) -> Sequence[str]:
    counts = str(session["turns"]), str(session["total_tokens"]), f"{session['cost_usd']:.4f}"
    return session["session"], *counts, local_time(session["updated_at"]), excerpt(session["title"] or "")
