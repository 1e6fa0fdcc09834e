"""How many pages a PDF has: by what it says of itself, or by its size. A guess, in bounded time; it reads none. Pure.

A page is an object of `/Type /Page` (ISO 32000, 7.7.3.3). Such objects stand in the file, or, since PDF 1.5, within
compressed streams of objects (7.5.7).
"""

import binascii
import re
import zlib

# Anthropic takes no more in one request (platform.claude.com, "PDF support").
PAGES_MAX = 600
# Of what is not at hand, its size alone is known. A page of text is mostly 10 to 50 kB, a scanned one more.
PAGE_BYTES = 20_000
# Of a document that is named by a URL or an id, not even that.
UNKNOWN_PAGES = 100

# The two ways in which programs write it; a tree of pages is `/Pages`.
NAMES = (b"/Type /Page", b"/Type/Page")
OBJECTS = re.compile(rb"/ObjStm\b")
BEGINNING = re.compile(rb"stream\r?\n")
# From where a stream's kind is said to where its bytes begin.
BEGINNING_BYTES_MAX = 1024
STREAM_BYTES_MAX = 256 * 1024
# What a short one counts for: to begin it costs as much.
STREAM_BYTES_MIN = 16 * 1024
# Of all documents of one request: a tenth of a second. A body has room for a thousand, each of which unpacks to 25 MB.
UNPACKED_BYTES_MAX = 8 * 1024 * 1024


class PageCounter:
    """Counts the pages of one request's documents, of which so much is unpacked and no more."""

    def __init__(self) -> None:
        self._left = UNPACKED_BYTES_MAX

    def pages(self, base64: str) -> int:
        """Of a PDF in base64, 1 to PAGES_MAX; by its size, where it shows none, or not all of it was looked into."""
        try:
            pdf = binascii.a2b_base64(base64)
        except ValueError:
            # Nobody will read it.
            return 1
        found = _named(pdf)
        for kind in OBJECTS.finditer(pdf):
            if self._left <= 0:
                found = max(found, of_size(len(base64)))
                break
            objects = _unpacked(pdf, kind.end())
            self._left -= max(len(objects), STREAM_BYTES_MIN)
            found += _named(objects)
        return min(found or of_size(len(base64)), PAGES_MAX)


def of_size(base64_bytes: int) -> int:
    """The pages that a PDF of so many bytes, in base64, may have."""
    return min(1 + base64_bytes * 3 // 4 // PAGE_BYTES, PAGES_MAX)


def _named(objects: bytes) -> int:
    return sum(objects.count(name) - objects.count(name + b"s") for name in NAMES)


def _unpacked(pdf: bytes, said: int) -> bytes:
    """The objects in the stream whose kind is said until `said`; none, where it cannot be read."""
    beginning = BEGINNING.search(pdf, said, said + BEGINNING_BYTES_MAX)
    if beginning is None:
        return b""
    compressed = memoryview(pdf)[beginning.end() : beginning.end() + STREAM_BYTES_MAX]
    try:
        return zlib.decompressobj().decompress(compressed, STREAM_BYTES_MAX)
    except zlib.error:
        return b""
