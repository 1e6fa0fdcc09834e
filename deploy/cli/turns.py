"""`tailrace turns`: lists running turns, or turns by session, label, day and words; also the slowest or costliest."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from tailrace.client import Client
from tailrace.deploy.cli.arguments import (
    add_connection,
    add_json,
    add_labels,
    add_number,
    day,
    label_parameters,
    labels_of,
    session_id,
    tenant,
)
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.conversations import Record, excerpt, local_time, print_table, text_of
from tailrace.deploy.cli.result import print_json
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.usage import Usage

DESCRIPTION = "List the running turns, or those of a session, a user or some days, by words, the slowest or costliest."
EXAMPLES = """\
examples:
  tailrace turns                        the running turns, oldest first
  tailrace turns --session SESSION      all turns of a session
  tailrace turns --search "loire delta"  turns with both words in their messages and answers, newest first
  tailrace turns --user ann@example.com  the turns of a user, newest first
  tailrace turns --user ann@example.com --from 2026-01-31 --to 2026-01-31
  tailrace turns --slowest              the turns of today and yesterday that waited longest for their first token
  tailrace turns --slowest --from 2026-01-31 --to 2026-01-31
  tailrace turns --costliest            the turns of the last seven days that cost most
  tailrace turns --costliest --user ann@example.com --from 2026-01-31 --to 2026-01-31
  tailrace turns --costliest --tenant acme  of any tenant, with a key of the scope `admin`; without the questions
  tailrace turns --json | jq -r '.[].turn'

A search finds whole words, in any case, in turns that have ended. It does not cover system prompts and files.
"""
PAGE = 100
# Each of these orders has one page.
ORDERED_MAX = 200
COSTLIEST_DAYS = 7
HEADINGS = ("TURN", "OUTCOME", "MODEL", "ASKED", "FIRST TOKEN", "OUTPUT", "QUESTION")
COSTLY = ("TURN", "COST $", "TOKENS", "MODEL", "USER", "SESSION", "QUESTION")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--session", type=session_id, metavar="ID", help="all turns of this session, oldest first")
    which.add_argument("--search", metavar="WORDS", help="turns with all of these words, newest first")
    which.add_argument("--slowest", action="store_true", help="turns that waited longest for their first token")
    which.add_argument("--costliest", action="store_true", help="turns that cost most")
    about = "of --costliest: a tenant, for a key with the scope `admin` (default: that of the key)"
    parser.add_argument("--tenant", type=tenant, metavar="NAME", help=about)
    add_labels(parser)
    add = parser.add_argument
    of_days = f"first day, UTC (default of --slowest: yesterday; of --costliest: the last {COSTLIEST_DAYS} days)"
    add("--from", type=day, dest="first", metavar="DAY", help=of_days)
    add("--to", type=day, dest="last", metavar="DAY", help="last day, UTC (default: today)")
    add_number(parser, "--limit", 50, "the maximum number of lines", 1, 100_000)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Prints at most `args.limit` turns. Raises SettingsInvalid, GatewayFailed."""
    if args.session is not None and has_filter(args):
        raise SettingsInvalid(
            "--session lists all turns of a session: it cannot be combined with --user, --model, --key-id, --metadata, "
            "--from and --to"
        )
    if args.tenant is not None and not args.costliest:
        raise SettingsInvalid("--tenant is an option of --costliest: add it, or use a key of the tenant")
    with connect(args, environ) as client:
        found = list(islice(find_turns(client, args), args.limit))
    if args.json:
        print_json(found)
        return 0
    is_running = not (args.session or args.search is not None or args.slowest or args.costliest or has_filter(args))
    row = costly_row if args.costliest else turn_row
    # Operators see no text.
    headings = HEADINGS if not args.costliest else COSTLY if args.tenant is None else COSTLY[:-1]
    print_table(headings, map(row, found), "no turn is running" if is_running else "no turns")
    return 0


def has_filter(args: argparse.Namespace) -> bool:
    return bool(labels_of(args) or args.first or args.last)


def find_turns(client: Client, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the turns that the arguments select, or the running turns if they select none."""
    first, query = args.first, {}
    if args.slowest or args.costliest:
        last = args.last or datetime.now(UTC).date()
        days = COSTLIEST_DAYS if args.costliest else 1 if args.last else 2
        first = first or last - timedelta(days=days - 1)
        order = "-cost_usd" if args.costliest else "first_token_s"
        query = {"limit": str(min(args.limit, ORDERED_MAX))} | ({} if args.tenant else {"order": order})
    elif args.search is not None or has_filter(args):
        query = {"limit": str(min(args.limit, PAGE))}
    if not query:
        return client.turns(args.session)
    filters = {"q": args.search, "from": first, "to": args.last}
    query |= {name: str(value) for name, value in filters.items() if value is not None}
    path = "/v1/turns" if args.tenant is None else f"/v1/admin/tenants/{args.tenant}/turns"
    return client.items(path, query | label_parameters(labels_of(args)))


def turn_row(turn: Record) -> Sequence[str]:
    tokens = str(turn["usage"].get("output_tokens", 0))
    waited = turn.get("first_token_s")
    first = "" if waited is None else f"{waited:.1f} s"
    return turn["turn"], turn["outcome"], turn["model"], local_time(turn["asked_at"]), first, tokens, question_of(turn)


def costly_row(turn: Record) -> Sequence[str]:
    cost = "unknown" if turn["cost_usd"] is None else f"{turn['cost_usd']:.4f}"
    tokens = str(sum(turn["usage"].get(name, 0) for name in Usage.__struct_fields__))
    question = [question_of(turn)] if "input" in turn else []
    return turn["turn"], cost, tokens, turn["model"], turn.get("user") or "-", turn["session"], *question


def question_of(turn: Record) -> str:
    """Returns the first words of the last message of a turn."""
    return excerpt(text_of(turn["input"][-1]["content"])) if turn["input"] else ""
