"""Cursors of lists: a time and a name, encoded as opaque base64url text (`next` and `after` of a page)."""

from typing import NamedTuple

from tailrace.proto.errors import cursor_invalid
from tailrace.proto.records import PAGE_ITEMS_MAX
from tailrace.proto.runtime import base64url

# SQLite's greatest integer, later than every stored time.
END_OF_TIME = 2**63 - 1


class PageCursor(NamedTuple):
    """A position in a list that is ordered by time, then by name. `at` is in microseconds since 1970."""

    at: int
    name: str


OLDEST = PageCursor(-1, "")
NEWEST = PageCursor(END_OF_TIME, "")


def encode(cursor: PageCursor) -> str:
    return base64url.encode(f"{cursor.at}.{cursor.name}".encode())


def decode(text: str) -> PageCursor:
    """Returns the cursor that `encode` made `text` of. Raises Refused (cursor_invalid) for any other text."""
    try:
        # The decoder accepts several texts for one cursor (padding, "+1"); only the text of `encode` is valid.
        at, _, name = base64url.decode(text).decode().partition(".")
        cursor = PageCursor(int(at), name)
        if encode(cursor) == text and 0 <= cursor.at <= END_OF_TIME:
            return cursor
    except ValueError:
        pass
    raise cursor_invalid()


def start(after: str | None, default: PageCursor) -> PageCursor:
    """Returns the cursor of a request, or `default` without one. Raises Refused as `decode` does."""
    return decode(after) if after is not None else default


def clamp_offset(offset: int) -> int:
    """Returns `offset` within the range of SQL's integers."""
    return max(0, min(offset, END_OF_TIME))


def clamp_limit(limit: int, most: int = PAGE_ITEMS_MAX) -> int:
    """Returns the number from 1 to `most` that is closest to `limit`."""
    return max(1, min(limit, most))
