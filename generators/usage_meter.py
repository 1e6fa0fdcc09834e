"""Counts the usage of a model call from its events, and the text of a call that is not stored. Pure."""

from collections.abc import Callable

from tailrace.generators.backends.model_event import ModelEvent, Sink, report_left_out
from tailrace.proto import events
from tailrace.proto.usage import CallUsage, estimate_usage, utf8_bytes


class UsageMeter:
    """Counts the usage of one call from its events, as the fold of the turn's log counts it."""

    def __init__(self) -> None:
        self._usage = CallUsage()
        self._bytes = 0
        self._ended: list[CallUsage] = []
        """The earlier calls of the same attempt: a backend that executes tools makes several."""

    @property
    def calls(self) -> list[CallUsage]:
        """The usage of each of the attempt's calls."""
        return [*self._ended, self.usage]

    @property
    def unreported_bytes(self) -> int:
        """The bytes of text of the current call that the model has not reported in its usage yet."""
        return self._bytes

    @property
    def usage(self) -> CallUsage:
        """The usage that the model has reported, plus an estimate for the text since then."""
        return estimate_usage(self._usage, self._bytes)

    def add(self, event: ModelEvent) -> None:
        """Counts an event: the usage that it reports, or the bytes of its text."""
        self._bytes += event.left_out
        match event.event:
            case events.BlockDelta(
                _, events.TextDelta(piece) | events.ThinkingDelta(piece) | events.InputJsonDelta(piece)
            ):
                self._bytes += utf8_bytes(piece)
            case events.MessageStart(message):
                if self._usage != CallUsage() or self._bytes:
                    self._ended.append(self.usage)
                self._usage, self._bytes = message.usage, 0
            case events.BlockStart(_, block):
                self._bytes += utf8_bytes(str(block.get("text", "")))
            case events.MessageDelta(_, usage):
                self._usage = usage.merge_into(self._usage)
                if usage.output_tokens is not None:
                    self._bytes = 0
            case _:
                pass


class LeftOutMeter:
    """Counts the bytes of text of a call that the sinks around `sink` do not pass on to it.

    They hold text back while it may be left out: of what they still hold when the call ends, nothing is stored.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._sent = UsageMeter()
        self._stored = UsageMeter()

    def wrap(self, wrap_sink: Callable[[Sink], Sink]) -> Sink:
        """Returns the sink for the model's events: `sink` as `wrap_sink` wraps it. Raises what `wrap_sink` raises."""
        wrapped = wrap_sink(self._store)
        if wrapped == self._store:
            return self._sink

        def send(event: ModelEvent) -> None:
            self._sent.add(event)
            wrapped(event)

        return send

    def _store(self, event: ModelEvent) -> None:
        self._sink(event)
        self._stored.add(event)

    def report(self) -> None:
        """Puts a hidden event into `sink` if the ended call has sent more than was stored or reported as left out."""
        left_out = self._sent.unreported_bytes - self._stored.unreported_bytes
        if left_out > 0:
            self._sink(report_left_out(left_out))
