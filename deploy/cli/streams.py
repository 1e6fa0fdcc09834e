"""`tailrace streams`: creates missing streams and buckets in a running NATS; existing ones do not change."""

import argparse
import asyncio
import time
from collections.abc import Mapping

from tailrace.deploy.cli.arguments import add_json, number
from tailrace.deploy.cli.result import print_result
from tailrace.deploy.nats import setup
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import stream_configs
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.users import ADMIN

DESCRIPTION = "Create missing streams and buckets in the NATS at TAILRACE_NATS_URL; existing ones do not change."
EXAMPLES = """\
`tailrace up` does this itself. For your own NATS servers:
  TAILRACE_NATS_URL=nats://admin:PASSWORD@nats.internal:4222 tailrace streams --replicas 3

Later, for an upgrade or after something was deleted, it needs no options: what it creates has as many copies as the
existing streams.
"""
GIB = 1024**3
GIB_OF_SERVER = 10
# The rest of the store is for large bodies (BODIES_SHARE), claims, and the server's own files.
LOG_SHARE_MAX = 0.8
RETRY_S = 0.1
# Servers of a cluster that have just started need up to 9 s to elect a leader, and to find each other.
START_S_MAX = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_json(parser)
    about = "copies of the log (default: those of the existing streams, else 1)"
    add("--replicas", type=number("count", 1, 5), metavar="N", help=about)
    about = f"storage a server, GiB (default: enough for the existing log, else {GIB_OF_SERVER})"
    add("--gib", type=number("size", 1, 65536), metavar="N", help=about)


def run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Creates what is missing, and prints the number. Raises LogUnavailable after START_S_MAX, LogError."""
    url = environ.get("TAILRACE_NATS_URL", "nats://127.0.0.1:4222")
    file_bytes_max = args.gib * GIB if args.gib is not None else None
    created = asyncio.run(apply(url, file_bytes_max=file_bytes_max, replicas=args.replicas, wait_s=START_S_MAX))
    existed = len(stream_configs.EVERY_STREAM) + len(stream_configs.CONSUMERS) - created
    text = f"{created} streams, buckets and consumers created; {existed} existed and were not changed"
    print_result(args, text, created=created, existed=existed)
    return 0


async def apply(
    url: str,
    *,
    file_bytes_max: int | None,
    replicas: int | None = None,
    wait_s: float = 0.0,
    repairs: bool = False,
) -> int:
    """Creates all that is missing, for servers that may store `file_bytes_max` each; returns the number created.

    Without `file_bytes_max` or `replicas`, the size or the replicas of the existing streams are used. Retries for
    `wait_s` seconds, because the servers of a cluster answer before they have elected a leader. Raises LogMisconfigured
    if an existing stream or consumer differs, LogUnavailable if no server answers. `repairs`: see deploy.nats.setup.
    """
    connection = await Connection.open(url, "tailrace-streams", ADMIN)
    deadline = time.monotonic() + wait_s
    try:
        while True:
            try:
                existing = await setup.read_existing(connection)
                bytes_max = existing.bytes_max if file_bytes_max is None else log_bytes_max(file_bytes_max)
                return await setup.apply(
                    connection,
                    replicas=replicas or existing.replicas or 1,
                    bytes_max=bytes_max or log_bytes_max(GIB_OF_SERVER * GIB),
                    repairs=repairs,
                )
            except LogUnavailable:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(RETRY_S)
    finally:
        await connection.close()


def log_bytes_max(file_bytes_max: int) -> int:
    """Returns the size limit of the log, for servers that may store `file_bytes_max` each."""
    return min(stream_configs.BYTES_MAX, int(LOG_SHARE_MAX * file_bytes_max))
