"""`tailrace streams`: creates missing streams and buckets in a running NATS; existing ones do not change."""

import argparse
import asyncio
from collections.abc import Mapping
from functools import partial

from tailrace.deploy.cli.arguments import add_json, number
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.nats.new_log import ask_database
from tailrace.deploy.nats.streams import GIB, GIB_OF_SERVER, apply
from tailrace.proto.nats import stream_configs

DESCRIPTION = "Create missing streams and buckets in the NATS at TAILRACE_NATS_URL; existing ones do not change."
EXAMPLES = """\
`tailrace up` does this itself. For your own NATS servers:
  TAILRACE_NATS_URL=nats://admin:PASSWORD@nats.internal:4222 tailrace streams --new --replicas 3

Later, for an upgrade or after something was deleted, it needs no options: what it creates has as many copies as the
existing streams. A missing log is created only with --new, or if persistence or the database at TAILRACE_DATABASE says
that it has recorded nothing: the log may be in another account, JetStream domain or volume, where a new one could
overwrite it.
"""
# Servers of a cluster that have just started need up to 9 s to elect a leader, and to find each other.
START_S_MAX = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_json(parser)
    add("--new", action="store_true", help="a first installation: create the log, too")
    about = "copies of the log (default: those of the existing streams, else 1)"
    add("--replicas", type=number("count", 1, 5), metavar="N", help=about)
    about = f"storage a server, GiB (default: enough for the existing log, else {GIB_OF_SERVER})"
    add("--gib", type=number("size", 1, 65536), metavar="N", help=about)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Creates missing parts, and prints their number.

    Raises LogUnseen for a log that must not be created, LogUnavailable after START_S_MAX, LogError.
    """
    url = environ.get("TAILRACE_NATS_URL", "nats://127.0.0.1:4222")
    file_bytes_max = args.gib * GIB if args.gib is not None else None
    created = asyncio.run(
        apply(
            url,
            file_bytes_max=file_bytes_max,
            replicas=args.replicas,
            wait_s=START_S_MAX,
            is_new=args.new,
            others=[partial(ask_database, environ.get("TAILRACE_DATABASE"))],
        )
    )
    existed = len(stream_configs.EVERY_STREAM) + len(stream_configs.CONSUMERS) - created
    text = f"{created} streams, buckets and consumers created; {existed} existed and were not changed"
    print_result(args, text, created=created, existed=existed)
    return 0
