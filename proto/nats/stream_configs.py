"""The configurations of Tailrace's six streams, four KV buckets and three consumers in NATS. Pure data."""

from typing import Any

from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    DiscardPolicy,
    RePublish,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)

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

CONSUMERS = (GENERATORS, PERSISTENCE, WEBHOOKS)
BUCKETS = (CLAIMS, KEYS, SECRETS, LOGINS)
EVERY_STREAM = (STREAM, BODIES, LIMITS, BUDGETS, SLOTS, AUDIT, *(f"KV_{bucket}" for bucket in BUCKETS))

SCHEMA = "1"
RETENTION_S = 24 * 3600.0
BYTES_MAX = 8 * 1024**3
# A conversation that continues within half of this time keeps its pictures.
BODIES_RETENTION_S = 7 * 24 * 3600.0
# A share of the log's byte limit, which the blobs have in addition.
BODIES_SHARE = 1 / 6
# Counted from a login's last refresh; logins also have an expiry of their own.
LOGINS_KEPT_S = 30 * 24 * 3600.0
# After this time a killed generator's turn is delivered to another one. Renewed three times per period.
GENERATOR_ACK_WAIT_S = 2.0
PERSISTENCE_ACK_WAIT_S = 10.0
# After this time a killed process's webhook is delivered by another one.
WEBHOOKS_ACK_WAIT_S = 10.0
# Windows of up to one hour, plus the time until their turns are settled.
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


def other_streams(replicas: int, retention_s: float) -> list[StreamConfig]:
    """Returns the configurations of the streams besides the log and the blobs."""
    return [*limit_streams(replicas), audit_stream(replicas), *buckets(replicas, retention_s)]


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
        retention=RetentionPolicy.LIMITS,
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

    With a limit, nats-server would stop delivering an entry without notice. Attempts are counted in the log instead.
    """
    return ConsumerConfig(
        durable_name=name,
        filter_subjects=subjects,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=ack_wait_s,
        max_deliver=-1,
        max_ack_pending=-1,
    )
