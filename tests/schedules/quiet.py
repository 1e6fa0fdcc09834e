"""only_failures: turns the product's logging off, and collects the exceptions that it logs."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from structlog.typing import EventDict

from tests.schedules.model import UnexpectedError


@contextmanager
def only_failures(failures: list[BaseException]) -> Iterator[None]:
    """Adds the exceptions that the product logs in the block to `failures`, but for those that the simulator raises.

    The product logs an unexpected exception at the edge of a turn and goes on. In a schedule it is a bug, or a part of
    the simulator that does not fit the product any more. Logging itself would take a third of the time.
    """

    def collect(_: object, __: str, event: EventDict) -> EventDict:
        error = sys.exc_info()[1]
        if event.get("exc_info") and error is not None and not isinstance(error, UnexpectedError):
            failures.append(error)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[collect], wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        structlog.configure(**before)
