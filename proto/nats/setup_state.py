"""Which streams, buckets and consumers exist in NATS, their metrics, and a periodic check.

The check notices a deletion within seconds. Without the check no process would report it: a process that fetches from a
deleted consumer gets no entries, as when there is no work. Only the administrator's user may create streams and
consumers: `tailrace up` creates them, and elsewhere `tailrace streams`. A generator that could create a consumer could
have the log's entries sent to any subject (ADR 23).
"""

import asyncio
import time
from collections.abc import Mapping
from typing import NamedTuple

import nats.errors
import nats.js.errors
import structlog
from nats.js.api import ConsumerInfo, StreamInfo
from prometheus_client import Gauge

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.connection import Connection, explain
from tailrace.proto.nats.stream_configs import CONSUMERS, EVERY_STREAM
from tailrace.proto.subjects import STREAM

logger = structlog.get_logger()

CHECK_EVERY_S = 5.0
# After this number of failed checks in a row, the process connects to another nats-server: a server that has lost the
# others still answers pings. The number doubles each time: if all servers have lost each other, a reconnect only
# interrupts reads.
FAILURES_MAX = 2
MISSING = Gauge(
    "tailrace_nats_missing", "Streams, buckets and consumers that Tailrace needs and that NATS does not have"
)
# A replica's leader hears from it every second. Under load, a healthy one is some entries behind at most moments.
SILENT_S_MAX = 10
LAG_MAX = 1_000
NO_NAME = "a server"
REDUNDANCY_LOST = "if one more fails, the log stops"
# The names of the usual exporter (prometheus-nats-exporter). Every process exports what it saw at its last check: use
# the maximum over all processes.
OF_STREAM, OF_CONSUMER = ("stream_name",), ("stream_name", "consumer_name")
MESSAGES = Gauge("jetstream_stream_total_messages", "Messages that a stream holds", OF_STREAM)
BYTES = Gauge("jetstream_stream_total_bytes", "Bytes that a stream holds", OF_STREAM)
BYTES_MAX = Gauge("jetstream_stream_limit_bytes", "The byte limit of a stream; 0 for none", OF_STREAM)
PENDING = Gauge("jetstream_consumer_num_pending", "Entries that a consumer has not delivered yet", OF_CONSUMER)
ACK_PENDING = Gauge(
    "jetstream_consumer_num_ack_pending",
    "Entries that a consumer has delivered and that are not acknowledged yet",
    OF_CONSUMER,
)
REPLICAS_BEHIND = Gauge(
    "tailrace_nats_replicas_behind", "Replicas of a stream that are away, or far behind its leader", OF_STREAM
)
CLOCK_OFFSET = Gauge(
    "tailrace_clock_offset_seconds", "The clock of this machine, minus that of the nats-server that leads the log"
)
REDELIVERED = Gauge(
    "jetstream_consumer_num_redelivered", "Entries delivered more than once that are not acknowledged yet", OF_CONSUMER
)


class SetupState(NamedTuple):
    """The state of Tailrace's streams, buckets and consumers in NATS at one moment."""

    missing: list[str] = []  # noqa: RUF012  # never changed
    """The missing streams, buckets and consumers, as text for an operator."""
    last: Seq = BEFORE_FIRST
    """The last entry of the log."""
    is_replicated: bool = True
    """Whether more than one server stores the log, or may store it."""
    origin: str = ""
    """The creation time of the log's stream, and its leader; empty without the stream. If one of the two has changed,
    the entries may differ."""
    leader: str = ""
    """The nats-server that leads the log, if several servers store it; empty without a leader."""
    behind: list[str] = []  # noqa: RUF012  # never changed
    """The nats-servers that are away, or far behind, with their copy of a stream. The next failure is an outage."""
    floors: Mapping[str, Seq] = {}
    """For each consumer: all entries up to this one are acknowledged."""


async def read_setup_state(connection: Connection) -> SetupState:
    """Reads the state of every stream, bucket and consumer, and sets their metrics. Raises LogUnavailable."""
    jetstream = connection.jetstream
    missing, last, is_replicated, origin, leader, floors = [], BEFORE_FIRST, True, "", "", {}
    behind: set[str] = set()
    try:
        for stream in EVERY_STREAM:
            try:
                info = await jetstream.stream_info(stream)
            except nats.js.errors.NotFoundError:
                missing.append(f"the bucket {stream[3:]}" if stream.startswith("KV_") else f"the stream {stream}")
            else:
                behind.update(away := servers_behind(info))
                observe_stream(info, len(away))
                if stream == STREAM:
                    last, is_replicated = Seq(info.state.last_seq), has_replicas(info)
                    leads = (info.cluster.leader or "") if info.cluster else ""
                    origin, leader = f"{info.created} {leads}", leads if is_replicated else ""
        for durable in CONSUMERS:
            try:
                consumer = await jetstream.consumer_info(STREAM, durable)
            except nats.js.errors.NotFoundError:
                missing.append(f"the consumer {durable}")
            else:
                observe_consumer(consumer)
                floor = consumer.ack_floor
                floors[durable] = Seq(floor.stream_seq if floor else BEFORE_FIRST)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams do not answer: {explain(error)}") from error
    return SetupState(missing, last, is_replicated, origin, leader, sorted(behind), floors)


def has_replicas(info: StreamInfo) -> bool:
    """Returns whether more than one server stores the stream. While it is moved, another server has a copy, too."""
    return info.config.num_replicas != 1 or bool(info.cluster and info.cluster.replicas)


def servers_behind(info: StreamInfo) -> list[str]:
    """Returns the names of the servers whose replica of the stream is away or far behind; NO_NAME for a replica that no
    server holds. Empty without replication."""
    copies = (info.cluster.replicas if info.cluster else None) or []
    names = [
        str(copy.name)
        for copy in copies
        if copy.offline or (copy.active or 0) > SILENT_S_MAX * 1e9 or (copy.lag or 0) > LAG_MAX
    ]
    return names + [NO_NAME] * ((info.config.num_replicas or 1) - 1 - len(copies))


def observe_stream(info: StreamInfo, behind: int) -> None:
    """Sets the metrics of the stream's size, and of its replicas that are `behind`. BYTES_MAX is 0 without a limit."""
    name = info.config.name
    MESSAGES.labels(name).set(info.state.messages)
    BYTES.labels(name).set(info.state.bytes)
    BYTES_MAX.labels(name).set(max(info.config.max_bytes or 0, 0))
    REPLICAS_BEHIND.labels(name).set(behind)


def observe_consumer(info: ConsumerInfo) -> None:
    """Sets the metrics of the consumer's backlog and its unacknowledged and repeated deliveries."""
    labels = info.stream_name, info.name
    PENDING.labels(*labels).set(info.num_pending or 0)
    ACK_PENDING.labels(*labels).set(info.num_ack_pending or 0)
    REDELIVERED.labels(*labels).set(info.num_redelivered or 0)


async def read_clock_offset_s(connection: Connection) -> float:
    """Returns how many seconds this machine's clock is ahead of nats-server's, to half of a round trip. Raises
    LogUnavailable."""
    before, server, after = time.time(), await connection.now(), time.time()
    return (before + after) / 2 - server.timestamp()


async def watch(connection: Connection) -> None:
    """Checks every `CHECK_EVERY_S` seconds, forever; logs changes and sets the metrics.

    Sets `connection.missing` and `connection.forkless_after`. Leaves a nats-server on which the checks fail.
    """
    origin, failures, failures_max = "", 0, FAILURES_MAX
    while True:
        await asyncio.sleep(CHECK_EVERY_S)
        disconnects = connection.disconnects
        try:
            state = await read_setup_state(connection)
            CLOCK_OFFSET.set(await read_clock_offset_s(connection))
        except LogUnavailable as error:
            logger.debug("NATS setup unknown", error=str(error))
            failures += 1
            if failures == failures_max:
                failures_max *= 2
                connection.leave_server()
            continue
        failures, failures_max = 0, FAILURES_MAX
        if state.is_replicated or connection.disconnects != disconnects:
            connection.forkless_after = None
        elif connection.forkless_after is None or state.origin != origin:
            connection.forkless_after = state.last
        origin = state.origin
        if state.missing and state.missing != connection.missing:
            logger.error("NATS lacks what Tailrace needs: run `tailrace streams`", missing=", ".join(state.missing))
        elif connection.missing and not state.missing:
            logger.info("NATS has again what Tailrace needs")
        connection.missing = state.missing
        MISSING.set(len(state.missing))
