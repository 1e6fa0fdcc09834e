"""Checks the streams, buckets and consumers of stream_configs.py in NATS, and reads the sizes of streams."""

from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors
import structlog

from tailrace.proto.errors import LogIncomplete, LogMisconfigured, LogUnavailable
from tailrace.proto.nats.connection import Connection, explain
from tailrace.proto.nats.setup_differences import consumer_differences, stream_differences
from tailrace.proto.nats.stream_configs import (
    BODIES_RETENTION_S,
    BYTES_MAX,
    RETENTION_S,
    bodies_stream,
    consumers,
    other_streams,
    turns_stream,
)
from tailrace.proto.subjects import STREAM

logger = structlog.get_logger()

# Earlier versions let a client restore streams without permission, and an unauthenticated one fill the server's memory
# (CVE-2026-33222 and similar). Counters exist since 2.12.
SERVER_MIN = (2, 12, 6)
# An event of a model has up to 4 MiB, and an entry of a long conversation more.
PAYLOAD_BYTES = 8 * 1024**2
# The default of nats-server. A blob's chunk has half of this size.
PAYLOAD_BYTES_MIN = 1024**2
LOG_MISSING = f"NATS has no log (the stream {STREAM})"
# A cluster deletes streams that it did not create 30 s after its start (`checkForOrphans` in jetstream_cluster.go).
LOG_ELSEWHERE = (
    "It may be in another account, JetStream domain or volume, or in the store of a single server that was started as "
    "one of three, which deletes it within 30 s (docs/ONE_TO_THREE.md)"
)
COPY_FIRST = "stop nats-server now, and copy its store (docs/RUNBOOK.md, The log is missing)"


async def check(connection: Connection) -> None:
    """Raises LogIncomplete if a stream or consumer is missing, LogMisconfigured if it differs from this version's.

    Raises LogUnavailable.
    """
    jetstream = connection.jetstream
    _check_payload(connection.client.max_payload)
    if (server := connection.server_version) is not None and server < SERVER_MIN:
        raise LogMisconfigured(
            f"nats-server {'.'.join(map(str, server))} is older than {'.'.join(map(str, SERVER_MIN))}, "
            "which limits need, and has known vulnerabilities: upgrade it"
        )
    try:
        differing, is_seen = [], False
        turns, bodies = turns_stream(1, BYTES_MAX, RETENTION_S), bodies_stream(1, BYTES_MAX, BODIES_RETENTION_S)
        for ours in (turns, bodies, *other_streams(1, RETENTION_S)):
            found = (await jetstream.stream_info(str(ours.name))).config
            is_seen = True  # the log is the first
            differing += _describe(f"stream {ours.name}", stream_differences(ours, found), ours, found)
        for wanted in consumers():
            lease = (await jetstream.consumer_info(STREAM, str(wanted.durable_name))).config
            names = consumer_differences(wanted, lease)
            differing += _describe(f"consumer {wanted.durable_name}", names, wanted, lease)
    except nats.js.errors.NotFoundError as error:
        if not is_seen:
            raise LogIncomplete(
                f"{LOG_MISSING}. {LOG_ELSEWHERE}: {COPY_FIRST}; in a first installation, run `tailrace streams --new`"
            ) from error
        raise LogIncomplete(
            "NATS lacks a stream, bucket or consumer: run `tailrace streams`, or start `tailrace up`. "
            "If another account has the log, see docs/RUNBOOK.md, Move from one account to several"
        ) from error
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams cannot be checked: {explain(error)}") from error
    if differing:
        raise LogMisconfigured(
            f"NATS is set up for another version: {'; '.join(differing)}. Change it with `nats stream edit` or "
            "`nats consumer edit`; see docs/RUNBOOK.md"
        )


def _check_payload(bytes_max: int) -> None:
    """Logs a warning about a small `max_payload`. Raises LogMisconfigured if it is too small for blobs."""
    if bytes_max >= PAYLOAD_BYTES:
        return
    if bytes_max < PAYLOAD_BYTES_MIN:
        raise LogMisconfigured(f"`max_payload` of the NATS server is {bytes_max} bytes: set it to 8MB, at least to 1MB")
    _warn_of_small_payload(bytes_max)


@cache  # a start that waits checks again and again
def _warn_of_small_payload(bytes_max: int) -> None:
    logger.warning(
        "`max_payload` of the NATS server is small: longer conversations are refused; set it to 8MB",
        bytes=bytes_max,
    )


class StreamSize(NamedTuple):
    """The bytes of a stream, and their limit; 0: no limit."""

    used: int
    limit: int

    @property
    def ratio(self) -> float:
        """The used share of the limit, 0 to 1."""
        return self.used / self.limit if self.limit > 0 else 0.0


async def stream_size(connection: Connection, stream: str) -> StreamSize:
    """Returns how full a stream is. Raises LogUnavailable."""
    info = await connection.stream_info(stream)
    return StreamSize(info.state.bytes, max(0, info.config.max_bytes))


async def fullness(connection: Connection) -> float:
    """Returns the used share of the log's byte limit, 0 to 1. Raises LogUnavailable."""
    return (await stream_size(connection, STREAM)).ratio


def _describe(what: str, names: Iterable[str], wanted: Any, found: Any) -> list[str]:
    """Returns what differs, for the operator."""
    return [f"{what}: {name} is {getattr(found, name)!r}, not {getattr(wanted, name)!r}" for name in names]
