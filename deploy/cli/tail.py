"""`tailrace tail`: shows the answer of a turn from its start, and follows it to its end."""

import argparse
from collections.abc import Mapping

from tailrace.deploy.cli import display
from tailrace.deploy.cli.answers import follow, report, warn_if_simulated
from tailrace.deploy.cli.arguments import add_connection, add_json, add_turn_id
from tailrace.deploy.cli.connection import connect
from tailrace.deploy.cli.result import print_json

DESCRIPTION = "Show the answer of a turn from its start, and follow it to its end."
EXAMPLES = """\
examples:
  tailrace tail 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41
  tailrace tail 019aa8e2-4c1f-7d3a-9b52-6f0e8d7c5a41 --json      each event as a line, with its cursor
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_turn_id(parser)
    parser.add_argument("--after", default="", metavar="CURSOR", help="show only the events after this cursor")
    add_json(parser, "print each event as a line of JSON")
    add_connection(parser)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Shows the answer from its start, or after the cursor `--after`, until its end.

    Returns 1 if the turn did not complete. Raises SettingsInvalid, GatewayFailed.
    """
    screen = display.new_display(is_json=args.json)
    with connect(args, environ, on_retry=screen.retry) as client:
        is_simulated = warn_if_simulated(client)
        if args.json:
            answer = client.resume(args.id, after=args.after)
            for event in answer:
                print_json(event)
            return report(answer.done(), is_simulated=is_simulated)
        end = follow(lambda: client.resume(args.id, after=args.after, on_state=screen.state), screen)
        return report(end, is_simulated=is_simulated)
