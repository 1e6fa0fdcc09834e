"""Where the next page of a list goes on, as opaque text: a time and a name. It reads no database."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import NamedTuple

from tailrace.proto.errors import Refused

LIMIT_MAX = 200
# The greatest integer of SQLite: after every time there is.
END_OF_TIME = 2**63 - 1


class PageCursor(NamedTuple):
    """A place in a list that is ordered by time and then by name. `at` is in microseconds since 1970."""

    at: int
    name: str


OLDEST = PageCursor(-1, "")
NEWEST = PageCursor(END_OF_TIME, "")


def write(place: PageCursor) -> str:
    return urlsafe_b64encode(f"{place.at}.{place.name}".encode()).decode().rstrip("=")


def read(text: str) -> PageCursor:
    """The place that `write` wrote; raises Refused when it did not write `text`."""
    try:
        # A decoder that forgives would let many texts name one place: what is not written so is not ours.
        at, _, name = urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode().partition(".")
        place = PageCursor(int(at), name)
        if write(place) == text and 0 <= place.at <= END_OF_TIME:
            return place
    except (ValueError, binascii.Error):
        pass
    raise Refused("cursor_invalid", "the cursor is not a `next` of this list: send it back as it came, or leave it out")


def begin(after: str | None, otherwise: PageCursor) -> PageCursor:
    """Where a page begins; raises Refused as `read` does."""
    return read(after) if after is not None else otherwise


def bounded(limit: int) -> int:
    return max(1, min(limit, LIMIT_MAX))
