"""`tailrace cancel`: ends a turn."""

import argparse
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_connection, add_json, add_turn_id
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.result import print_json
from tailrace.deploy.local.terminal_text import one_line

DESCRIPTION = "End a turn, even if another program has started it. Its text so far remains."
EXAMPLES = "example:\n  tailrace cancel 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_turn_id(parser)
    add_json(parser)
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Cancels the turn and prints its outcome, also if it had ended before. Raises GatewayFailed."""
    with connect(args, environ) as client:
        found = client.cancel(args.id)
    if args.json:
        print_json(found)
    else:
        print(one_line(f"{found['turn']}: {found['outcome']}"))
    return 0
