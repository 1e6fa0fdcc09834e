"""Creates and checks the streams, buckets and consumers of stream_configs.py in NATS.

`apply` creates what is missing, `check` raises if something differs. By default, neither changes what exists.
"""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import ConsumerConfig, DeliverPolicy, StreamConfig

from tailrace.proto.errors import LogMisconfigured, LogUnavailable
from tailrace.proto.nats.connection import Connection, explain
from tailrace.proto.nats.setup_differences import consumer_differences, stream_differences
from tailrace.proto.nats.setup_state import SetupState
from tailrace.proto.nats.stream_configs import (
    BODIES_RETENTION_S,
    BODIES_SHARE,
    BYTES_MAX,
    CONSUMERS,
    EVERY_STREAM,
    RETENTION_S,
    audit_stream,
    bodies_stream,
    buckets,
    consumers,
    limit_streams,
    turns_stream,
)
from tailrace.proto.subjects import BODIES, STREAM

logger = structlog.get_logger()

# Earlier versions let a client restore streams without permission, and an unauthenticated one fill the server's memory
# (CVE-2026-33222 and similar). Counters exist since 2.12.
SERVER_MIN = (2, 12, 6)
# An event of a model has up to 4 MiB, and an entry of a long conversation more.
PAYLOAD_BYTES = 8 * 1024**2
# A blob's chunk has half of it. It is the default of nats-server.
PAYLOAD_BYTES_MIN = 1024**2


async def apply(
    connection: Connection,
    *,
    replicas: int = 1,
    bytes_max: int = BYTES_MAX,
    retention_s: float = RETENTION_S,
    bodies_retention_s: float = BODIES_RETENTION_S,
    after: SetupState = SetupState(),  # noqa: B008  # never changed
    repairs: bool = False,
) -> int:
    """Creates missing streams and consumers, then checks all; returns how many it has created.

    Raises LogMisconfigured, LogUnavailable. With `repairs`, settings of streams that break the protocol are set back.

    `after` is how far they were before a deletion. A new log continues its sequences, so that no cursor of a
    client points to another turn's entry. A new consumer starts at the first entry that was not acknowledged.
    """
    jetstream = connection.jetstream
    turns = turns_stream(replicas, bytes_max, retention_s)
    turns.first_seq = after.last + 1 if after.last else None
    created = 0
    try:
        bodies = bodies_stream(replicas, int(BODIES_SHARE * bytes_max), bodies_retention_s)
        for config in (turns, bodies, *_other_streams(replicas, retention_s)):
            created += await _create_stream(jetstream, config)
            if repairs:
                await _set_back(connection, config)
        for consumer in consumers():
            if floor := after.floors.get(str(consumer.durable_name)):
                consumer.deliver_policy, consumer.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, floor + 1
            created += await _create_consumer(jetstream, consumer)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams cannot be set up: {explain(error)}") from error
    await check(connection)
    return created


async def check(connection: Connection) -> None:
    """Raises LogMisconfigured if a stream or consumer is missing or differs from this version's, LogUnavailable."""
    jetstream = connection.jetstream
    _check_payload(connection.client.max_payload)
    if (server := connection.server_version) is not None and server < SERVER_MIN:
        raise LogMisconfigured(
            f"nats-server {'.'.join(map(str, server))} is older than {'.'.join(map(str, SERVER_MIN))}, "
            "which limits need, and has known vulnerabilities: upgrade it"
        )
    try:
        differing = []
        turns, bodies = turns_stream(1, BYTES_MAX, RETENTION_S), bodies_stream(1, BYTES_MAX, BODIES_RETENTION_S)
        for ours in (turns, bodies, *_other_streams(1, RETENTION_S)):
            found = (await jetstream.stream_info(str(ours.name))).config
            differing += _describe(f"stream {ours.name}", stream_differences(ours, found), ours, found)
        for wanted in consumers():
            lease = (await jetstream.consumer_info(STREAM, str(wanted.durable_name))).config
            names = consumer_differences(wanted, lease)
            differing += _describe(f"consumer {wanted.durable_name}", names, wanted, lease)
    except nats.js.errors.NotFoundError as error:
        raise LogMisconfigured(
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
    logger.warning(
        "`max_payload` of the NATS server is small: longer conversations are refused; set it to 8MB",
        bytes=bytes_max,
    )


class ExistingStreams(NamedTuple):
    """The replicas and the size of the streams that exist; 0 where it is unknown."""

    replicas: int
    """The highest number of replicas of a stream."""
    bytes_max: int
    """The byte limit of the log. If the log was deleted, it is computed from the limit of the blobs."""


async def read_existing(connection: Connection) -> ExistingStreams:
    """Returns the replicas and the size of the streams that exist. Raises LogUnavailable."""
    replicas, limits = 0, {}
    for name in EVERY_STREAM:
        try:
            config = (await connection.jetstream.stream_info(name)).config
        except nats.js.errors.NotFoundError:
            continue
        except nats.errors.Error as error:
            raise LogUnavailable(f"the streams cannot be set up: {explain(error)}") from error
        replicas = max(replicas, config.num_replicas or 1)
        limits[name] = max(0, config.max_bytes or 0)
    return ExistingStreams(replicas, limits.get(STREAM) or int(limits.get(BODIES, 0) / BODIES_SHARE))


async def lagging_servers(connection: Connection) -> set[str]:
    """Returns the servers with an offline or lagging replica of a stream or consumer.

    Empty without replication. Raises LogUnavailable, also if a stream or consumer has no leader.
    """
    jetstream = connection.jetstream
    try:
        clusters = [(await jetstream.stream_info(name)).cluster for name in EVERY_STREAM]
        for consumer in CONSUMERS:
            clusters.append((await jetstream.consumer_info(STREAM, consumer)).cluster)  # noqa: PERF401
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams do not answer ({type(error).__name__}): retry") from error
    copies = [copy for cluster in clusters if cluster for copy in cluster.replicas or []]
    return {str(copy.name) for copy in copies if copy.offline or not copy.current}


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


def _other_streams(replicas: int, retention_s: float) -> list[StreamConfig]:
    """Returns the streams besides the log and the blobs."""
    return [*limit_streams(replicas), audit_stream(replicas), *buckets(replicas, retention_s)]


def _describe(what: str, names: Iterable[str], wanted: Any, found: Any) -> list[str]:
    """Returns what differs, for the operator."""
    return [f"{what}: {name} is {getattr(found, name)!r}, not {getattr(wanted, name)!r}" for name in names]


async def _set_back(connection: Connection, ours: StreamConfig) -> None:
    """Sets the settings of a stream that break the protocol to those of `ours`. Raises nats.errors.Error.

    All other settings stay, also those that nats-py does not know. What nats-server does not let change stays, too.
    """
    reply = await connection.client.request(f"$JS.API.STREAM.INFO.{ours.name}")
    config = msgspec.json.decode(reply.data).get("config")
    # Without a leader there is none, which `check` reports.
    names = stream_differences(ours, StreamConfig.from_response({**config})) if config else []
    if not names:
        return
    wanted = ours.as_dict()
    for name in names:
        config.pop(name, None)
        if name in wanted:
            config[name] = wanted[name]
    reply = await connection.client.request(f"$JS.API.STREAM.UPDATE.{ours.name}", json.dumps(config).encode())
    error = msgspec.json.decode(reply.data).get("error")
    logger.warning("settings of a stream were set back", stream=ours.name, settings=names, error=error)


async def _create_stream(jetstream: JetStreamContext, config: StreamConfig) -> bool:
    """Creates the stream if there is none of this name; returns whether it did."""
    try:
        await jetstream.stream_info(str(config.name))
    except nats.js.errors.NotFoundError:
        await jetstream.add_stream(config)
        return True
    return False


async def _create_consumer(jetstream: JetStreamContext, config: ConsumerConfig) -> bool:
    # `add_consumer` would silently update an existing durable consumer.
    try:
        await jetstream.consumer_info(STREAM, str(config.durable_name))
    except nats.js.errors.NotFoundError:
        await jetstream.add_consumer(STREAM, config)
        return True
    return False
