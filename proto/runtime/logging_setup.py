"""Structured logging for every process: one line a fact, on standard error; never a prompt, an answer or a key.

`logger` here is Python's kind of log. The turn's log is in `tailrace.proto.nats`.
"""

import logging
import sys
from typing import Literal

import structlog

LogFormat = Literal["json", "console"]


def configure(role: str, form: LogFormat, level: str = "info") -> None:
    """Send structlog's lines, and those of the libraries below, to standard error in `form`."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        # Plain: a formatter that shows local variables would show prompts.
        else structlog.dev.ConsoleRenderer(
            colors=False, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    )
    rendered = [structlog.processors.format_exc_info, last] if form == "json" else [_printable, last]
    structlog.configure(
        processors=[*shared, *rendered],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendered],
    )
    foreign = logging.StreamHandler(sys.stderr)
    foreign.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [foreign]
    # The libraries' own chatter is not ours to repeat; what they find wrong is.
    root.setLevel(logging.WARNING)


def _printable(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What somebody else has said is no line break and no command to the terminal that shows it. JSON has its own."""
    return {
        name: told.encode("unicode_escape").decode() if isinstance(told, str) and not told.isprintable() else told
        for name, told in event.items()
    }
