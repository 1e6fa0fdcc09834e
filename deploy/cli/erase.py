"""`tailrace erase`: erases all data of a user or of the tenant, and prints what was erased."""

import argparse
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tailrace.client import Client, TailraceError
from tailrace.deploy.cli.arguments import add_connection, add_json
from tailrace.deploy.cli.connection import GatewayFailed, connect
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.terminal_text import make_printable
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.exit_status import EXIT_ERROR

# How long one request erases. After a longer silence, a client would assume a lost connection.
PART_S = 10
# A part also waits for an entry and for the database.
SILENCE_S = 120.0
# Refusals or empty parts in a row, for example while persistence restarts.
REFUSALS_MAX, REFUSED_WAIT_S = 30, 1.0
DESCRIPTION = "Erase all data of a user, or of the key's tenant, and print a report as JSON. It cannot be undone."
EXAMPLES = """\
Turns of others that continue a turn of the user are erased too. Sums of usage stay, without names. On a terminal, the
command asks before it erases. Elsewhere, for example in a script, it needs --yes. The folders of Claude Code stay:
docs/ERASURE.md has the command that deletes them.

examples:
  tailrace export --user ann@example.com --output ann.jsonl
  tailrace erase --user ann@example.com
  tailrace erase --user ann@example.com --yes           without the question
  tailrace erase --tenant acme                          all data of the tenant; it must be the key's own
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--user", metavar="NAME", help="erase the turns and sessions of this user")
    what.add_argument("--tenant", metavar="NAME", help="erase everything of this tenant, which the key belongs to")
    parser.add_argument("--yes", action="store_true", help="erase without asking")
    add_json(parser, "print the report in one line")
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Asks for confirmation, erases in parts, and prints the sum of all parts.

    Also prints what was erased before an error. Returns EXIT_ERROR without confirmation. Raises SettingsInvalid,
    GatewayFailed.
    """
    what = f"user {args.user}" if args.user is not None else f"tenant {args.tenant}"
    if not (args.yes or is_confirmed(f"Erase all data of the {make_printable(what)}? It cannot be undone. [y/N] ")):
        print("nothing was erased", file=sys.stderr)
        return EXIT_ERROR
    if args.user is not None:
        path, params = "/v1/users", {"user": args.user}
    else:
        path, params = "/v1/tenant", {"confirm": args.tenant}
    total: dict[str, Any] = {}
    try:
        # The client repeats no request by itself: the counts of a lost response would be missing in the report.
        with connect(args, environ, tries_max=0, silence_s=SILENCE_S) as client:
            for part in _erase(client, path, params):
                total = _add(total, part)
                if not part.get("complete", True):
                    print(f"erased so far: {total['turns']} turns, {total['log_entries']} entries", file=sys.stderr)
    finally:
        # Also after an error: this is the only record of what was erased before.
        if total and args.json:
            print_json(total)
        elif total:
            print(make_printable(msgspec.json.format(msgspec.json.encode(total), indent=2).decode()))
    return 0


def _erase(client: Client, path: str, params: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Erases in parts, and yields the report of each part. Raises TailraceError of the client.

    A refused request has erased nothing, so it is repeated if a later try may succeed; a lost request is not.
    """
    refusals, is_complete = 0, False
    while not is_complete:
        try:
            part = client.request("DELETE", path, params={**params, "max_seconds": str(PART_S)})
        except TailraceError as error:
            refusals += 1
            if error.status is None and not error.is_unreachable:
                print("what the last request has erased is not in the report; repeat the command", file=sys.stderr)
            if error.status is None or not error.is_temporary or refusals > REFUSALS_MAX:
                raise
            time.sleep(max(error.retry_after_s, REFUSED_WAIT_S))
            continue
        yield part
        is_complete = part.get("complete", True)
        refusals = 0 if part["turns"] or part.get("log_entries") else refusals + 1
        if not is_complete and refusals > REFUSALS_MAX:
            raise GatewayFailed("the last requests have erased nothing: upgrade persistence before the gateways")


def _add(total: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a report with the sums of the counts of both. Other fields are those of `part`."""
    added = dict(part)
    for name, value in part.items():
        if isinstance(value, Mapping):
            added[name] = _add(total.get(name, {}), value)
        elif isinstance(value, int) and not isinstance(value, bool):
            added[name] = total.get(name, 0) + value
    return added


def is_confirmed(question: str) -> bool:
    """Asks `question`, and returns whether the answer is yes. Raises SettingsInvalid without a terminal."""
    if not sys.stdin.isatty():
        raise SettingsInvalid("erased data cannot be restored: add --yes, or run this command on a terminal")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
