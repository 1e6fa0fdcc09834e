"""The configuration of Tailrace's six streams, four KV buckets and three consumers in NATS.

`apply` creates what is missing, `check` raises if something differs. Neither changes what exists: `update_stream` with
an older configuration silently turns features off, so a change is an explicit migration.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import nats.errors
import nats.js.errors
import structlog
from nats.js import JetStreamContext
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DeliverPolicy,
    DiscardPolicy,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

from tailrace.proto.errors import LogMisconfigured, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.connection import Connection, raise_if_cancelled
from tailrace.proto.subjects import (
    AUDIT,
    BODIES,
    BUDGETS,
    CLAIMS,
    EVERY_AUDIT,
    EVERY_BLOB,
    EVERY_BUDGET,
    EVERY_END,
    EVERY_KEY,
    EVERY_LIMIT,
    EVERY_LIVE,
    EVERY_LIVE_KEY,
    EVERY_REQUEST,
    EVERY_SLOT,
    EVERY_TURN,
    GENERATORS,
    KEYS,
    LIMITS,
    LOGINS,
    PERSISTENCE,
    SECRETS,
    SLOTS,
    STREAM,
    WEBHOOKS,
)

logger = structlog.get_logger()

SCHEMA = "1"
# Earlier versions let a client restore streams without permission, and an unauthenticated one fill the server's memory
# (CVE-2026-33222 and similar). Counters exist since 2.12.
SERVER_MIN = (2, 12, 6)
# An event of a model has up to 4 MiB, and an entry of a long conversation more.
PAYLOAD_BYTES = 8 * 1024**2
# A blob's chunk has half of it. It is the default of nats-server.
PAYLOAD_BYTES_MIN = 1024**2
RETENTION_S = 24 * 3600.0
BYTES_MAX = 8 * 1024**3
# A conversation that continues within half of this time keeps its pictures.
BODIES_RETENTION_S = 7 * 24 * 3600.0
# As a share of the log's byte limit, in addition to it.
BODIES_SHARE = 1 / 6
# After a login's last refresh; logins also have an expiry of their own.
LOGINS_KEPT_S = 30 * 24 * 3600.0
# After this time a killed generator's turn is delivered to another one. Renewed three times per period.
GENERATOR_ACK_WAIT_S = 2.0
PERSISTENCE_ACK_WAIT_S = 10.0
# After this time a killed process's webhook is delivered by another one.
WEBHOOKS_ACK_WAIT_S = 10.0
# Counters of windows up to one hour, plus what is settled at the end of turns.
LIMITS_KEPT_S = 2 * 3600.0
# A month, plus nine days.
BUDGETS_KEPT_S = 40 * 24 * 3600.0
# The server keeps the names of increments in memory, and after a restart rebuilds them from the stored messages. So the
# last increments of each counter are stored: as many as occur while a settled turn may still be delivered again. That
# is about 25 kB a counter, and there are many counters of days and months.
INCREMENTS_KEPT = 128
# Longer than any turn runs, and than its log is kept.
SLOTS_KEPT_S = 7 * 24 * 3600.0


def stream_config(name: str, description: str, subject: str, replicas: int, **options: Any) -> StreamConfig:
    """Returns the configuration of a stream on disk with direct gets, so that every replica answers reads."""
    return StreamConfig(
        name=name,
        description=f"Tailrace: {description}",
        subjects=[subject],
        storage=StorageType.FILE,
        retention=RetentionPolicy.LIMITS,
        allow_direct=True,
        num_replicas=replicas,
        metadata={"tailrace_schema": SCHEMA},
        **options,
    )


def turns_stream(replicas: int, bytes_max: int, retention_s: float) -> StreamConfig:
    """Returns the configuration of the log. Each entry is published again for the followers of its turn."""
    republish = RePublish(src=EVERY_TURN, dest=EVERY_LIVE)
    # A full log refuses new turns instead of dropping old entries.
    options = {"discard": DiscardPolicy.NEW, "max_bytes": bytes_max, "max_age": retention_s, "republish": republish}
    return stream_config(STREAM, "the log of each turn", EVERY_TURN, replicas, **options)


def bodies_stream(replicas: int, bytes_max: int, retention_s: float) -> StreamConfig:
    """Returns the configuration of the stream of blobs, which keeps the newest message of each subject."""
    # A blob that is stored again replaces itself.
    options = {"discard": DiscardPolicy.NEW, "max_bytes": bytes_max, "max_age": retention_s, "max_msgs_per_subject": 1}
    return stream_config(BODIES, "blobs", EVERY_BLOB, replicas, **options)


def counter_stream(name: str, subject: str, kept_s: float, remembered_s: float, replicas: int) -> StreamConfig:
    """Returns the configuration of a stream of counters. The last message of a subject holds the counter's value.

    A repeated increment with the same name is recognised for `remembered_s`.
    """
    options = {"max_age": kept_s, "max_msgs_per_subject": INCREMENTS_KEPT, "duplicate_window": remembered_s}
    return stream_config(name, "counters", subject, replicas, allow_msg_counter=True, **options)


def slots_stream(replicas: int) -> StreamConfig:
    """Returns the configuration of the stream of slots, which keeps one message for each slot that is held."""
    options = {"max_age": SLOTS_KEPT_S, "max_msgs_per_subject": 1, "allow_msg_ttl": True}
    return stream_config(SLOTS, "slots", EVERY_SLOT, replicas, **options)


def audit_stream(replicas: int) -> StreamConfig:
    """Returns the configuration of the audit log. No client can delete from it, and nothing expires."""
    return stream_config(AUDIT, "changes by operators", EVERY_AUDIT, replicas, deny_delete=True, deny_purge=True)


def limit_streams(replicas: int) -> list[StreamConfig]:
    """Returns the streams for limits: counters of windows, counters of budgets, slots (PROTOCOL R37)."""
    return [
        counter_stream(LIMITS, EVERY_LIMIT, LIMITS_KEPT_S, LIMITS_KEPT_S, replicas),
        counter_stream(BUDGETS, EVERY_BUDGET, BUDGETS_KEPT_S, RETENTION_S, replicas),
        slots_stream(replicas),
    ]


def buckets(replicas: int, retention_s: float) -> list[StreamConfig]:
    """Returns the configurations of the KV buckets. Claims are kept for `retention_s`, as long as turns."""
    return [
        # A claim must not outlive the turn that it points to.
        bucket(CLAIMS, replicas, retention_s),
        bucket(KEYS, replicas, allow_direct=True, republish=RePublish(src=EVERY_KEY, dest=EVERY_LIVE_KEY)),
        bucket(SECRETS, replicas),
        bucket(LOGINS, replicas, LOGINS_KEPT_S),
    ]


def bucket(
    name: str,
    replicas: int,
    kept_s: float | None = None,
    *,
    allow_direct: bool = False,
    republish: RePublish | None = None,
) -> StreamConfig:
    """Returns the stream of a standard KV bucket (ADR-8 of nats-architecture-and-design).

    `Nats-Rollup` is disabled: with it, one message of any writer could replace the whole bucket.
    Without `allow_direct` only the leader answers reads, so that a read is never stale.
    """
    return StreamConfig(
        name=f"KV_{name}",
        subjects=[f"$KV.{name}.>"],
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_age=kept_s,
        max_msgs_per_subject=1,
        allow_direct=allow_direct,
        allow_msg_ttl=True,
        deny_delete=True,
        republish=republish,
        num_replicas=replicas,
    )


def consumers() -> list[ConsumerConfig]:
    """Returns the configurations of the durable consumers: what each role leases, and for how long."""
    return [
        consumer_config(GENERATORS, [EVERY_REQUEST], GENERATOR_ACK_WAIT_S),
        consumer_config(PERSISTENCE, [EVERY_REQUEST, EVERY_END], PERSISTENCE_ACK_WAIT_S),
        consumer_config(WEBHOOKS, [EVERY_END], WEBHOOKS_ACK_WAIT_S),
    ]


def consumer_config(name: str, subjects: list[str], ack_wait_s: float) -> ConsumerConfig:
    """Returns the configuration of a durable consumer of the log, which delivers an entry any number of times.

    With a limit, nats-server would stop delivering an entry without a message. Attempts are counted in the log instead.
    """
    return ConsumerConfig(
        durable_name=name,
        filter_subjects=subjects,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=-1,
    )


class SetupState(NamedTuple):
    """The state of Tailrace's streams, buckets and consumers in NATS at one moment."""

    missing: list[str] = []  # noqa: RUF012  # never changed
    """The missing streams, buckets and consumers, as text for an operator."""
    last: Seq = BEFORE_FIRST
    """The last entry of the log."""
    floors: Mapping[str, Seq] = {}
    """For each consumer: all entries up to this one are acknowledged."""


async def apply(
    connection: Connection,
    *,
    replicas: int = 1,
    bytes_max: int = BYTES_MAX,
    retention_s: float = RETENTION_S,
    bodies_retention_s: float = BODIES_RETENTION_S,
    after: SetupState = SetupState(),  # noqa: B008  # never changed
) -> int:
    """Creates missing streams and consumers, then checks all; returns how many it has created.

    Raises LogMisconfigured, LogUnavailable.

    `after` is how far they were before a deletion. A new log continues its sequences, so that no cursor of a
    client points to another turn's entry. A new consumer starts at the first entry that was not acknowledged.
    """
    jetstream = connection.jetstream
    turns = turns_stream(replicas, bytes_max, retention_s)
    turns.first_seq = after.last + 1 if after.last else None
    created = 0
    try:
        for config in (
            turns,
            bodies_stream(replicas, int(BODIES_SHARE * bytes_max), bodies_retention_s),
            *limit_streams(replicas),
            audit_stream(replicas),
            *buckets(replicas, retention_s),
        ):
            created += await _create_stream(jetstream, config)
        for consumer in consumers():
            if floor := after.floors.get(str(consumer.durable_name)):
                consumer.deliver_policy, consumer.opt_start_seq = DeliverPolicy.BY_START_SEQUENCE, floor + 1
            created += await _create_consumer(jetstream, consumer)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams cannot be set up: {_explain(error)}") from error
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
        for ours in (turns, bodies, *limit_streams(1), audit_stream(1)):
            found = (await jetstream.stream_info(str(ours.name))).config
            owned = OWNED_BY_COUNTERS if ours.allow_msg_counter else OWNED_BY_STREAM
            differing += _differences(ours, found, OWNED_BY_AUDIT if ours.name == AUDIT else owned)
        for wanted in consumers():
            info = await jetstream.consumer_info(STREAM, str(wanted.durable_name))
            differing += _differences(wanted, info.config, OWNED_BY_CONSUMER)
        for name in BUCKETS:
            await jetstream.key_value(name)
    except nats.js.errors.NotFoundError as error:
        raise LogMisconfigured(
            "NATS lacks a stream, bucket or consumer: run `tailrace streams`, or start `tailrace up`. "
            "If the log is older than the NATS accounts, see docs/RUNBOOK.md, Users of NATS"
        ) from error
    except nats.errors.Error as error:
        raise LogUnavailable(f"the streams cannot be checked: {_explain(error)}") from error
    if differing:
        raise LogMisconfigured(f"NATS is set up for another version: {'; '.join(differing)}. See docs/RUNBOOK.md")


def _check_payload(bytes_max: int) -> None:
    """Logs a warning about a small `max_payload`. Raises LogMisconfigured if it is too small for blobs."""
    if bytes_max >= PAYLOAD_BYTES:
        return
    if bytes_max < PAYLOAD_BYTES_MIN:
        raise LogMisconfigured(f"`max_payload` of the NATS server is {bytes_max} bytes: set it to 8MB, at least to 1MB")
    logger.warning(
        "`max_payload` of the NATS server is small: turns with larger events fail, and longer conversations are "
        "refused; set it to 8MB",
        bytes=bytes_max,
    )


def _explain(error: nats.errors.Error) -> str:
    if isinstance(error, nats.js.errors.ServiceUnavailableError) and error.code is None:
        return "this NATS server has no JetStream: add `jetstream { store_dir: … }` to its configuration"
    return str(error)


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
    try:
        info = await connection.jetstream.stream_info(stream)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the stream does not answer ({type(error).__name__}): retry") from error
    finally:
        raise_if_cancelled()
    return StreamSize(info.state.bytes, max(0, info.config.max_bytes or 0))


async def fullness(connection: Connection) -> float:
    """Returns the used share of the log's byte limit, 0 to 1. Raises LogUnavailable."""
    return (await stream_size(connection, STREAM)).ratio


CONSUMERS = (GENERATORS, PERSISTENCE, WEBHOOKS)
BUCKETS = (CLAIMS, KEYS, SECRETS, LOGINS)
EVERY_STREAM = (STREAM, BODIES, LIMITS, BUDGETS, SLOTS, AUDIT, *(f"KV_{bucket}" for bucket in BUCKETS))

# The fields that the protocol depends on. Sizes, retention and replicas are the operator's choice.
OWNED_BY_STREAM = (
    "subjects",
    "storage",
    "discard",
    "allow_direct",
    "republish",
    "retention",
    "max_msgs_per_subject",
    "allow_msg_counter",
    "allow_msg_ttl",
    "metadata",
)
# The number of stored increments may differ: earlier versions kept one, which is enough without a restart.
OWNED_BY_COUNTERS = tuple(name for name in OWNED_BY_STREAM if name != "max_msgs_per_subject")
# Its entries can only be added.
OWNED_BY_AUDIT = (*OWNED_BY_STREAM, "deny_delete", "deny_purge")
OWNED_BY_CONSUMER = ("filter_subjects", "ack_policy", "max_deliver")


def _differences(wanted: Any, found: Any, owned: tuple[str, ...]) -> list[str]:
    def is_same(name: str) -> bool:
        ours, theirs = getattr(wanted, name), getattr(found, name)
        # nats-server reports a single filter in the older field `filter_subject`.
        if name == "filter_subjects" and not theirs:
            theirs = [found.filter_subject]
        # The server adds its own metadata.
        if name == "metadata":
            theirs = {key: (theirs or {}).get(key) for key in ours}
        return bool(ours is None or ours == theirs)

    return [f"{name} is {getattr(found, name)!r}, not {getattr(wanted, name)!r}" for name in owned if not is_same(name)]


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
