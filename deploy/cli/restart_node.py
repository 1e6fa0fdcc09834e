"""`tailrace restart-node`: restarts one nats-server of a running `tailrace up --cluster`."""

import argparse
import asyncio
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_data, add_json
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.local import nats_cluster, restart_node, running

DESCRIPTION = "Restart one nats-server of a running `up --cluster`, and wait until it has caught up."
EXAMPLES = """\
Before it exits, the server hands over its leaderships, so that appends continue; `up` starts it again, with the version
of nats-server that is installed then. To upgrade all three, restart one after the other:

  for node in nats-1 nats-2 nats-3; do tailrace restart-node $node || break; done
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("node", choices=nats_cluster.names(), metavar="NAME", help=", ".join(nats_cluster.names()))
    add_json(parser)
    add_data(parser, "data directory of the running `up`, to be named if several run")


def run(args: argparse.Namespace, _: Mapping[str, str]) -> int:
    """Restarts one nats-server and waits until it has caught up. Raises SettingsInvalid, UpRefused, LogUnavailable."""
    running.require_named(args.data)
    asyncio.run(restart_node.restart(args.data, args.node))
    print_result(args, f"{args.node} runs again and has caught up", node=args.node)
    return 0
