"""Structured logging (structlog) to standard error: one line per event, without prompts, answers and keys."""

import asyncio
import atexit
import io
import logging
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

import structlog
from opentelemetry import trace

from tailrace.proto.runtime import systemd

LogFormat = Literal["json", "console", "colour"]

# The first fields of each line, in this order.
FIRST = ("turn", "tenant", "session", "model", "attempt")


STANDARD_ERROR = 2

# How long lines below `warning` wait for others, to be written with one call. A kill loses them.
WRITE_AFTER_S = 0.05


class _LossyOutput(io.TextIOBase):
    """Standard error, for log lines. A line that cannot be written is lost.

    A full disk or a closed pipe must not break the work.
    """

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[str] = []
        # Other threads write, too; and a signal's handler, in the middle of a line.
        self._lock = threading.RLock()
        atexit.register(self.flush)

    def write_soon(self, text: str) -> None:
        """Writes `text` within WRITE_AFTER_S, together with others; at once outside an event loop."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.write(text)
            return
        with self._lock:
            if not self._waiting:
                loop.call_later(WRITE_AFTER_S, self.flush)
            self._waiting.append(text)

    def write(self, text: str) -> int:
        with self._lock, suppress(OSError):
            waiting, self._waiting = self._waiting, []
            sys.stderr.write("".join([*waiting, text]))
            sys.stderr.flush()
        return len(text)

    def flush(self) -> None:
        if self._waiting:
            self.write("")


class _Lines:
    """The logger of structlog: passes each line on to `output`."""

    def __init__(self, output: _LossyOutput) -> None:
        self._output = output

    def info(self, line: str) -> None:
        self._output.write_soon(f"{line}\n")

    def warning(self, line: str) -> None:
        self._output.write(f"{line}\n")

    msg = debug = info
    error = critical = exception = warning


def is_coloured(out: TextIO, environ: Mapping[str, str]) -> bool:
    """Returns whether `out` is a terminal with colours, and NO_COLOR (https://no-color.org) is not set."""
    return out.isatty() and environ.get("TERM") != "dumb" and not environ.get("NO_COLOR")


def configure(role: str, form: LogFormat, level: str = "info") -> None:
    """Sends structlog's lines and the libraries' log records to standard error, in the format `form`."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True) if form == "json" else _local_time,
        _order_fields,
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        # Plain tracebacks: a formatter that shows local variables would print prompts.
        else structlog.dev.ConsoleRenderer(
            colors=form == "colour",
            pad_event_to=0,
            sort_keys=False,
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    rendered = [structlog.processors.format_exc_info, last] if form == "json" else [_escape_controls, last]
    if systemd.is_journal(STANDARD_ERROR):
        rendered.append(_add_priority)
    output = _LossyOutput()
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Lines(output),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
    )
    foreign = logging.StreamHandler(cast("TextIO", output))
    foreign.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [foreign]
    # Only warnings and errors of libraries.
    root.setLevel(logging.WARNING)


def add_trace_ids() -> None:
    """Adds the ids of the current span to each of structlog's lines from now on. Call it after `configure`."""
    structlog.configure(processors=[_add_trace_ids, *structlog.get_config()["processors"]])


def _add_trace_ids(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"], event["span_id"] = f"{context.trace_id:032x}", f"{context.span_id:016x}"
    return event


def _add_priority(_: object, level: str, rendered: Any) -> str:
    """Adds the priority that the journal reads to a rendered line. `level` is the name of the called method."""
    return systemd.with_priority(level, rendered)


def _local_time(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Adds the local time with milliseconds."""
    now = time.time()
    event["timestamp"] = f"{time.strftime('%H:%M:%S', time.localtime(now))}.{int(now % 1 * 1000):03}"
    return event


def _order_fields(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Puts the fields of `FIRST` first, and leaves out fields that are empty."""
    ordered = {**{name: event[name] for name in FIRST if name in event}, **event}
    return {name: value for name, value in ordered.items() if value is not None and value != ""}


def _escape_controls(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escapes control characters of foreign texts, so that they cannot break lines or control the terminal."""
    return {
        name: value.encode("unicode_escape").decode() if isinstance(value, str) and not value.isprintable() else value
        for name, value in event.items()
    }
