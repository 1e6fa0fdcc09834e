"""`tailrace erase`: erases all data of a user or of the tenant, and prints what was erased."""

import argparse
import sys
from collections.abc import Mapping

import msgspec

from tailrace.deploy.cli.arguments import add_connection, add_json
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.local.terminal_text import make_printable
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.exit_status import EXIT_ERROR

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
    what = f"user {args.user}" if args.user is not None else f"tenant {args.tenant}"
    if not (args.yes or is_confirmed(f"Erase all data of the {make_printable(what)}? It cannot be undone. [y/N] ")):
        print("nothing was erased", file=sys.stderr)
        return EXIT_ERROR
    with connect(args, environ) as client:
        if args.user is not None:
            report = client.request("DELETE", "/v1/users", params={"user": args.user})
        else:
            report = client.request("DELETE", "/v1/tenant", params={"confirm": args.tenant})
    encoded = msgspec.json.encode(report)
    print(make_printable((encoded if args.json else msgspec.json.format(encoded, indent=2)).decode()))
    return 0


def is_confirmed(question: str) -> bool:
    """Asks `question` on the terminal, and returns whether the answer is yes. Raises SettingsInvalid without one."""
    if not sys.stdin.isatty():
        raise SettingsInvalid("erased data cannot be restored: add --yes, or run this command on a terminal")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
