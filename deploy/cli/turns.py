"""`tailrace turns`: lists running turns, the turns of a session, turns with certain words, or the slowest turns."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from tailrace.client import Client
from tailrace.deploy.cli.arguments import add_connection, add_json, add_number, day, session_id
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.conversations import Record, excerpt, local_time, print_table, text_of
from tailrace.deploy.cli.result import print_json
from tailrace.proto.errors import SettingsInvalid

DESCRIPTION = "List the running turns, all turns of a session, the turns with certain words, or the slowest turns."
EXAMPLES = """\
examples:
  tailrace turns                        the running turns, oldest first
  tailrace turns --session SESSION      all turns of a session
  tailrace turns --search "loire delta"  turns with both words in their messages and answers, newest first
  tailrace turns --slowest              the turns of today and yesterday that waited longest for their first token
  tailrace turns --slowest --from 2026-01-31 --to 2026-01-31
  tailrace turns --json | jq -r '.[].turn'

A search finds whole words, in any case, in turns that have ended. It does not cover system prompts and files.
"""
PAGE = 100
SLOWEST_MAX = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--session", type=session_id, metavar="ID", help="all turns of this session, oldest first")
    which.add_argument("--search", metavar="WORDS", help="turns with all of these words, newest first")
    which.add_argument("--slowest", action="store_true", help="turns that waited longest for their first token")
    day_of = "of --slowest, UTC"
    add = parser.add_argument
    add("--from", type=day, dest="first", metavar="DAY", help=f"first day {day_of} (default: yesterday)")
    add("--to", type=day, dest="last", metavar="DAY", help=f"last day {day_of} (default: today)")
    add_number(parser, "--limit", 50, "the maximum number of lines", 1, 100_000)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints at most `args.limit` turns. Raises SettingsInvalid, GatewayFailed."""
    if (args.first or args.last) and not args.slowest:
        raise SettingsInvalid("--from and --to can be combined with --slowest only")
    with connect(args, environ) as client:
        found = list(islice(find_turns(client, args), args.limit))
    if args.json:
        print_json(found)
        return 0
    headings = ("TURN", "OUTCOME", "MODEL", "ASKED", "FIRST TOKEN", "OUTPUT", "QUESTION")
    is_running = args.session is None and args.search is None and not args.slowest
    print_table(headings, map(turn_row, found), "no turn is running" if is_running else "no turns")
    return 0


def find_turns(client: Client, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the turns that the arguments select, or the running turns if they select none."""
    if args.slowest:
        first = args.first or (args.last or datetime.now(UTC).date()) - timedelta(days=0 if args.last else 1)
        days = {"from": first.isoformat()} | ({"to": args.last.isoformat()} if args.last else {})
        return client.items("/v1/turns", {"order": "first_token_s", "limit": str(min(args.limit, SLOWEST_MAX)), **days})
    if args.search is None:
        return client.turns(args.session)
    return client.items("/v1/turns", {"q": args.search, "limit": str(min(args.limit, PAGE))})


def turn_row(turn: Record) -> Sequence[str]:
    tokens = str(turn["usage"].get("output_tokens", 0))
    question = excerpt(text_of(turn["input"][-1]["content"])) if turn["input"] else ""
    waited = turn.get("first_token_s")
    first = "" if waited is None else f"{waited:.1f} s"
    return turn["turn"], turn["outcome"], turn["model"], local_time(turn["asked_at"]), first, tokens, question
