"""`tailrace turns`: lists the running turns, or those of a session."""

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice

import msgspec

from tailrace.deploy.cli.arguments import add_connection, add_json, add_number
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.conversations import Record, excerpt, local_time, print_table, text_of

DESCRIPTION = "List the running turns, or all turns of a session."
EXAMPLES = """\
examples:
  tailrace turns                        the running turns, oldest first
  tailrace turns --session SESSION      all turns of a session
  tailrace turns --json | jq -r '.[].turn'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--session", metavar="ID", help="all turns of this session, oldest first")
    add_number(parser, "--limit", 50, "the maximum number of lines", 1, 100_000)
    add_json(parser)
    add_connection(parser)


def run(given: argparse.Namespace, environ: Mapping[str, str]) -> int:
    with connect(given, environ) as client:
        found = list(islice(client.turns(given.session), given.limit))
    if given.json:
        print(msgspec.json.encode(found).decode())
        return 0
    headings = ("TURN", "OUTCOME", "MODEL", "ASKED", "OUTPUT", "QUESTION")
    print_table(headings, map(turn_row, found), "no turn is running" if given.session is None else "no turns")
    return 0


def turn_row(turn: Record) -> Sequence[str]:
    tokens = str(turn["usage"].get("output_tokens", 0))
    question = excerpt(text_of(turn["input"][-1]["content"])) if turn["input"] else ""
    return turn["turn"], turn["outcome"], turn["model"], local_time(turn["asked_at"]), tokens, question
