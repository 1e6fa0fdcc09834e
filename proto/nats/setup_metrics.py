"""Gauges of NATS's streams and consumers, under the names of the usual exporter (prometheus-nats-exporter).

Every process looks at the setup every few seconds and exports what it has seen: use the maximum over all processes.
"""

from nats.js.api import ConsumerInfo, StreamInfo
from prometheus_client import Gauge

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
REDELIVERED = Gauge(
    "jetstream_consumer_num_redelivered", "Entries delivered more than once that are not acknowledged yet", OF_CONSUMER
)


def observe_stream(info: StreamInfo) -> None:
    """Sets the metrics of the stream's size. BYTES_MAX is 0 if the stream has no limit."""
    name = info.config.name
    MESSAGES.labels(name).set(info.state.messages)
    BYTES.labels(name).set(info.state.bytes)
    BYTES_MAX.labels(name).set(max(info.config.max_bytes or 0, 0))


def observe_consumer(info: ConsumerInfo) -> None:
    """Sets the metrics of the consumer's backlog and its unacknowledged and repeated deliveries."""
    labels = info.stream_name, info.name
    PENDING.labels(*labels).set(info.num_pending or 0)
    ACK_PENDING.labels(*labels).set(info.num_ack_pending or 0)
    REDELIVERED.labels(*labels).set(info.num_redelivered or 0)
