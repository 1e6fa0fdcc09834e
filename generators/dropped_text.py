"""DroppedTextMeter: counts the text of a model call that is not stored (PROTOCOL R70). Pure."""

from collections.abc import Callable

from tailrace.generators.backends.model_event import ModelEvent, Sink, report_left_out
from tailrace.proto.usage_meter import UsageMeter


class DroppedTextMeter:
    """Counts the bytes of a call's text that the sinks around `sink` do not pass on to `sink`.

    These sinks hold text back while it may be left out; text that they still hold at the end of the call is not
    stored.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._sent = UsageMeter()
        self._stored = UsageMeter()

    def wrap(self, wrap_sink: Callable[[Sink], Sink]) -> Sink:
        """Returns the sink for the model's events: `sink`, wrapped by `wrap_sink`. Raises what `wrap_sink` raises."""
        wrapped = wrap_sink(self._store)
        if wrapped == self._store:
            return self._sink

        def send(event: ModelEvent) -> None:
            self._sent.add(event.event, event.left_out)
            wrapped(event)

        return send

    def _store(self, event: ModelEvent) -> None:
        self._sink(event)
        self._stored.add(event.event, event.left_out)

    def report(self) -> None:
        """Puts a hidden event into `sink` if the ended call has sent more than was stored or reported as left out."""
        left_out = self._sent.unreported_bytes - self._stored.unreported_bytes
        if left_out > 0:
            self._sink(report_left_out(left_out))
