"""`tailrace turns`: lists running turns, or the turns of a session, a user or some days, by words or by slowness."""

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

DESCRIPTION = "List the running turns, or those of a session, of a user or of some days, by words, or the slowest."
EXAMPLES = """\
examples:
  tailrace turns                        the running turns, oldest first
  tailrace turns --session SESSION      all turns of a session
  tailrace turns --search "loire delta"  turns with both words in their messages and answers, newest first
  tailrace turns --user ann@example.com  the turns of a user, newest first
  tailrace turns --user ann@example.com --from 2026-01-31 --to 2026-01-31
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
    add = parser.add_argument
    add("--user", metavar="NAME", help="turns of this user, newest first")
    add("--from", type=day, dest="first", metavar="DAY", help="first day, UTC (default of --slowest: yesterday)")
    add("--to", type=day, dest="last", metavar="DAY", help="last day, UTC (default: today)")
    add_number(parser, "--limit", 50, "the maximum number of lines", 1, 100_000)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints at most `args.limit` turns. Raises SettingsInvalid, GatewayFailed."""
    if args.session is not None and has_filter(args):
        raise SettingsInvalid(
            "--session lists all turns of a session: it cannot be combined with --user, --from and --to"
        )
    with connect(args, environ) as client:
        found = list(islice(find_turns(client, args), args.limit))
    if args.json:
        print_json(found)
        return 0
    headings = ("TURN", "OUTCOME", "MODEL", "ASKED", "FIRST TOKEN", "OUTPUT", "QUESTION")
    is_running = args.session is None and args.search is None and not args.slowest and not has_filter(args)
    print_table(headings, map(turn_row, found), "no turn is running" if is_running else "no turns")
    return 0


def has_filter(args: argparse.Namespace) -> bool:
    return bool(args.user is not None or args.first or args.last)


def find_turns(client: Client, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the turns that the arguments select, or the running turns if they select none."""
    first, query = args.first, {}
    if args.slowest:
        first = first or (args.last or datetime.now(UTC).date()) - timedelta(days=0 if args.last else 1)
        query = {"order": "first_token_s", "limit": str(min(args.limit, SLOWEST_MAX))}
    elif args.search is not None or has_filter(args):
        query = {"limit": str(min(args.limit, PAGE))}
    if not query:
        return client.turns(args.session)
    filters = {"q": args.search, "user": args.user, "from": first, "to": args.last}
    return client.items("/v1/turns", query | {name: str(value) for name, value in filters.items() if value is not None})


def turn_row(turn: Record) -> Sequence[str]:
    tokens = str(turn["usage"].get("output_tokens", 0))
    question = excerpt(text_of(turn["input"][-1]["content"])) if turn["input"] else ""
    waited = turn.get("first_token_s")
    first = "" if waited is None else f"{waited:.1f} s"
    return turn["turn"], turn["outcome"], turn["model"], local_time(turn["asked_at"]), first, tokens, question
