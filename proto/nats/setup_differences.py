"""Which settings of a stream or consumer in NATS break the protocol. Pure.

Each setting that nats-py 2.16 knows belongs to the operator, and is listed here, or to the protocol. A setting of the
protocol must have the value of stream_configs.py; if stream_configs.py has none, it must be off.
"""

from dataclasses import fields
from typing import Any

from nats.js.api import ConsumerConfig, StreamConfig, StreamConsumerLimits

from tailrace.proto.nats.stream_configs import BUCKETS

# Sizes, times and places, and further ways to publish that no process uses.
OF_OPERATOR = frozenset(
    {
        "name",
        "description",
        "max_consumers",
        "max_bytes",
        "max_age",
        "num_replicas",
        "placement",
        "compression",
        "first_seq",
        "template_owner",
        "mirror_direct",
        "allow_atomic",
        "allow_batched",
        "allow_msg_schedules",
    }
)
# Buckets of earlier versions have messages without an expiry, which `Nats-Rollup` may replace. `allow_direct` and
# `max_msgs_per_subject` are not free. nats-py reads by direct gets if the bucket allows them, and each role has the
# permission for only one of the two ways to read. With a second message of a key, a removed value comes back when its
# deletion expires.
OF_EARLIER_BUCKETS = frozenset({"allow_msg_ttl", "allow_rollup_hdrs", "deny_delete", "metadata"})
# The number of stored increments: earlier versions kept one, which is enough without a restart.
OF_EARLIER_COUNTERS = frozenset({"max_msgs_per_subject"})
# Leases, the start of a consumer, and limits of what it delivers at once.
OF_OPERATOR_IN_CONSUMERS = frozenset(
    {
        "name",
        "durable_name",
        "description",
        "deliver_policy",
        "opt_start_seq",
        "opt_start_time",
        "ack_wait",
        "backoff",
        "max_waiting",
        "max_ack_pending",
        "sample_freq",
        "num_replicas",
        "mem_storage",
        "metadata",
        "pause_until",
        "filter_subject",
    }
)
# The values that nats-server and nats-py report for a setting that is off.
OFF: tuple[Any, ...] = (None, False, 0, -1, "", [], {}, "default", "instant", StreamConsumerLimits())


def stream_differences(ours: StreamConfig, found: StreamConfig) -> list[str]:
    """Returns the names of the settings of an existing stream that break the protocol."""
    free = OF_OPERATOR
    if str(ours.name).removeprefix("KV_") in BUCKETS:
        free |= OF_EARLIER_BUCKETS
    if ours.allow_msg_counter:
        free |= OF_EARLIER_COUNTERS
    return _differences(ours, found, free)


def consumer_differences(ours: ConsumerConfig, found: ConsumerConfig) -> list[str]:
    """Returns the names of the settings of an existing consumer that break the protocol."""
    if not found.filter_subjects and found.filter_subject:
        # nats-server reports a single filter in the older setting.
        found = found.evolve(filter_subjects=[found.filter_subject])
    return _differences(ours, found, OF_OPERATOR_IN_CONSUMERS)


def _differences(ours: Any, found: Any, free: frozenset[str]) -> list[str]:
    return [one.name for one in fields(ours) if one.name not in free and not _is_same(ours, found, one.name)]


def _is_same(ours: Any, found: Any, name: str) -> bool:
    wanted, seen = getattr(ours, name), getattr(found, name)
    if name == "allow_msg_ttl" and not wanted:
        # No process sets a life where none is needed, and nats-server does not let the setting be switched off.
        return True
    if name == "duplicate_window":
        # An increment that is sent again after its name is forgotten counts twice. nats-server sets a default.
        return bool((seen or 0) >= (wanted or 0))
    if name == "metadata":
        # The server adds metadata of its own.
        return all((seen or {}).get(key) == value for key, value in (wanted or {}).items())
    return bool(wanted == seen) or (wanted in OFF and seen in OFF)
