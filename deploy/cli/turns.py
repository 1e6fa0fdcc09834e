"""`tailrace turns`: lists the running turns, those of a session, or those with certain words."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from tailrace.client import Client
from tailrace.deploy.cli.arguments import add_connection, add_json, add_number, session_id
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.conversations import Record, excerpt, local_time, print_table, text_of
from tailrace.deploy.cli.result import print_json

DESCRIPTION = "List the running turns, all turns of a session, or the turns with certain words."
EXAMPLES = """\
examples:
  tailrace turns                        the running turns, oldest first
  tailrace turns --session SESSION      all turns of a session
  tailrace turns --search "loire delta"  turns with both words in their messages and answers, newest first
  tailrace turns --json | jq -r '.[].turn'

A search finds whole words, in any case, in turns that have ended. It does not cover system prompts and files.
"""
PAGE = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--session", type=session_id, metavar="ID", help="all turns of this session, oldest first")
    which.add_argument("--search", metavar="WORDS", help="turns with all of these words, newest first")
    add_number(parser, "--limit", 50, "the maximum number of lines", 1, 100_000)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints at most `args.limit` turns. Raises SettingsInvalid, GatewayFailed."""
    with connect(args, environ) as client:
        found = list(islice(find_turns(client, args), args.limit))
    if args.json:
        print_json(found)
        return 0
    headings = ("TURN", "OUTCOME", "MODEL", "ASKED", "OUTPUT", "QUESTION")
    is_running = args.session is None and args.search is None
    print_table(headings, map(turn_row, found), "no turn is running" if is_running else "no turns")
    return 0


def find_turns(client: Client, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the turns that contain the words of `--search`; without it, those of the session or the running turns."""
    if args.search is None:
        return client.turns(args.session)
    return client.items("/v1/turns", {"q": args.search, "limit": str(min(args.limit, PAGE))})


def turn_row(turn: Record) -> Sequence[str]:
    tokens = str(turn["usage"].get("output_tokens", 0))
    question = excerpt(text_of(turn["input"][-1]["content"])) if turn["input"] else ""
    return turn["turn"], turn["outcome"], turn["model"], local_time(turn["asked_at"]), tokens, question
