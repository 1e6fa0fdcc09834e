"""How many pages a PDF has: by what it says of itself, or by its size. A guess, in bounded time; it reads none. Pure.

A page is an object of `/Type /Page` (ISO 32000, 7.7.3.3). Such objects stand in the file, or, since PDF 1.5, within
compressed streams of objects (7.5.7), of which each is looked into as far as it goes.
"""

import binascii
import re
import zlib
from contextlib import suppress
from itertools import islice

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
STREAMS_MAX = 100


def counted(base64: str) -> int:
    """The pages of a PDF in base64, 1 to PAGES_MAX; by its size, where it shows none."""
    try:
        pdf = binascii.a2b_base64(base64)
    except ValueError:
        # Nobody will read it.
        return 1
    found = _named(pdf) + sum(map(_named, _objects(pdf)))
    return min(found, PAGES_MAX) if found else of_size(len(base64))


def of_size(base64_bytes: int) -> int:
    """The pages that a PDF of so many bytes, in base64, may have."""
    return min(1 + base64_bytes * 3 // 4 // PAGE_BYTES, PAGES_MAX)


def _named(objects: bytes) -> int:
    return sum(objects.count(name) - objects.count(name + b"s") for name in NAMES)


def _objects(pdf: bytes) -> list[bytes]:
    """What is in its streams of objects."""
    found: list[bytes] = []
    for kind in islice(OBJECTS.finditer(pdf), STREAMS_MAX):
        beginning = BEGINNING.search(pdf, kind.end(), kind.end() + BEGINNING_BYTES_MAX)
        if beginning is not None:
            with suppress(zlib.error):
                compressed = pdf[beginning.end() : beginning.end() + STREAM_BYTES_MAX]
                found.append(zlib.decompressobj().decompress(compressed, STREAM_BYTES_MAX))
    return found
