"""Estimate of the number of pages of a PDF, in bounded time. Pure.

A page is an object of `/Type /Page` (ISO 32000, section 7.7.3.3). Such objects stand in the file or, since PDF 1.5, in
compressed object streams (section 7.5.7). The counter counts their names and parses nothing. docs/DEPENDENCIES.md says
why this is not pypdf.
"""

import binascii
import re
import zlib
from collections.abc import Iterator
from itertools import islice

from tailrace.proto.long_strings import PIECE_BYTES

# The most that Anthropic accepts in one request (platform.claude.com, "PDF support").
PAGES_MAX = 600
# Used where only the size is known. A page of text mostly has 10 to 50 kB, a scanned one more.
PAGE_BYTES = 20_000
# Used where a URL or a file id names the document, so that not even its size is known.
UNKNOWN_PAGES = 100

# With any white space (ISO 32000, section 7.2.3). A node of the page tree is `/Pages`.
PAGE_NAME = re.compile(rb"/Type[\0\t\n\f\r ]*+/Page\b")
OBJECT_STREAM = re.compile(rb"/ObjStm\b")
STREAM_START = re.compile(rb"stream\r?\n")
# The distance from a stream's type to its first byte.
START_BYTES_MAX = 1024
STREAM_BYTES_MAX = 256 * 1024
# The least that a stream counts for: starting the decompressor costs about as much.
STREAM_BYTES_MIN = 16 * 1024
# The longest match that may begin in one piece and end in the next.
MATCH_BYTES_MAX = 256
# For all documents of one request: takes 0.1 s. A body can hold 1,000 documents that decompress to 25 MB each.
DECOMPRESSED_BYTES_MAX = 8 * 1024 * 1024


class PageCounter:
    """Counts the pages of all documents of one request; decompresses at most DECOMPRESSED_BYTES_MAX of them."""

    def __init__(self) -> None:
        self._left = DECOMPRESSED_BYTES_MAX

    def count(self, base64: str) -> int:
        """Returns the pages of a PDF in base64, 1 to PAGES_MAX.

        Estimates by size if it finds no page, or if the decompression limit is reached.
        """
        try:
            pdf = _decode(base64)
        except ValueError:
            # Not base64: the model will refuse it.
            return 1
        found = _count_names(pdf)
        for match in _find(OBJECT_STREAM, pdf):
            if self._left <= 0:
                found = max(found, pages_of_size(len(base64)))
                break
            objects = _decompress(pdf, match.end())
            self._left -= max(len(objects), STREAM_BYTES_MIN)
            found += _count_names(objects)
        return min(found or pages_of_size(len(base64)), PAGES_MAX)


def pages_of_size(base64_bytes: int) -> int:
    """Returns an estimate of the pages of a PDF that has `base64_bytes` in base64."""
    return min(1 + base64_bytes * 3 // 4 // PAGE_BYTES, PAGES_MAX)


def _count_names(objects: bytes) -> int:
    return sum(1 for _ in islice(_find(PAGE_NAME, objects), PAGES_MAX))


def _find(pattern: re.Pattern[bytes], content: bytes) -> Iterator[re.Match[bytes]]:
    """Yields the matches of `pattern`. A thread gives up the interpreter lock after each piece: 30 MB take 0.2 s."""
    for start in range(0, len(content), PIECE_BYTES):
        end = start + PIECE_BYTES
        yield from (found for found in pattern.finditer(content, start, end + MATCH_BYTES_MAX) if found.start() < end)


def _decode(base64: str) -> bytes:
    """Returns the content of `base64`, which may have line breaks; decodes piece by piece. Raises ValueError."""
    pieces, rest = [], ""
    for start in range(0, len(base64), PIECE_BYTES):
        text = rest + "".join(base64[start : start + PIECE_BYTES].split())
        whole = len(text) // 4 * 4
        pieces.append(binascii.a2b_base64(text[:whole]))
        rest = text[whole:]
    return b"".join([*pieces, binascii.a2b_base64(rest)])


def _decompress(pdf: bytes, after: int) -> bytes:
    """Returns the content of the stream whose type ends at `after`; empty if it cannot be decompressed."""
    start = STREAM_START.search(pdf, after, after + START_BYTES_MAX)
    if start is None:
        return b""
    compressed = memoryview(pdf)[start.end() : start.end() + STREAM_BYTES_MAX]
    try:
        return zlib.decompressobj().decompress(compressed, STREAM_BYTES_MAX)
    except zlib.error:
        return b""
