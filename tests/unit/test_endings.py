"""The table of endings is complete: each value of the metric and of a reader's report has its row."""

from typing import get_args

from tailrace.gateway.metrics import StreamEnd
from tailrace.gateway.streaming import endings
from tailrace.gateway.streaming.endings import StreamEnding
from tailrace.gateway.streaming.reader_report import Ending

ROWS = [row for row in vars(endings).values() if isinstance(row, StreamEnding)]


def test_each_value_of_the_metric_has_one_row() -> None:
    assert sorted(row.metric for row in ROWS) == sorted(get_args(StreamEnd))


def test_each_report_of_a_closed_stream_has_a_row() -> None:
    """A stream that raised an error is `failed`. A timeline infers `lost`."""
    assert {row.report for row in ROWS} == set(get_args(Ending)) - {"open", "failed", "lost"}


def test_only_a_whole_stream_and_one_of_a_draining_gateway_are_no_disconnect() -> None:
    """The gateways of a restart cannot decide for readers that reconnect to others."""
    kept = {row.metric for row in ROWS if row.reconnect_window_s is None}
    assert kept == {"whole", "failed", "drained"}
    assert {row.metric for row in ROWS if row.is_whole} == {"whole", "failed"}
