"""The dialects of a gateway by name: those of the core, and those of its features."""

from collections.abc import Iterable

from tailrace.gateway.clients.native.stream import TAILRACE
from tailrace.gateway.clients.native.text_stream import TEXT
from tailrace.gateway.streaming.dialect import Dialect, Dialects


def with_core(dialects: Iterable[Dialect]) -> Dialects:
    """Returns the dialects of the core and `dialects`. Raises ValueError if two have the same name."""
    found = Dialects()
    for dialect in (TAILRACE, TEXT, *dialects):
        if found.setdefault(dialect.name, dialect) is not dialect:
            raise ValueError(f"two dialects have the name {dialect.name}")
    return found
