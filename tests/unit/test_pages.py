"""How many pages a PDF is taken to have: as many as it shows, and else by its size."""

import base64
import random
import time
import zlib

import pytest

from tailrace.gateway.limits.pdf_pages import (
    DECOMPRESSED_BYTES_MAX,
    PAGES_MAX,
    STREAM_BYTES_MAX,
    PageCounter,
    pages_of_size,
)

PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] >>"
TREE = b"%PDF-1.5\n2 0 obj\n<< /Type /Pages /Kids [3 0 R] /Count 9 >>\nendobj\n"


def counted(base64: str) -> int:
    return PageCounter().count(base64)


def in_base64(pdf: bytes) -> str:
    return base64.b64encode(pdf).decode()


def packed(objects: bytes) -> bytes:
    """A stream of objects, as PDF 1.5 has it."""
    compressed = zlib.compress(objects)
    head = b"<< /Type /ObjStm /N 9 /First 40 /Filter /FlateDecode /Length %d >>" % len(compressed)
    return b"7 0 obj\n" + head + b"\nstream\r\n" + compressed + b"\nendstream\nendobj\n"


@pytest.mark.parametrize("page", [PAGE, PAGE.replace(b"/Type /Page", b"/Type/Page")])
def test_pages_are_counted_and_what_holds_them_is_none(page: bytes) -> None:
    """In either way to write them; a tree of pages is no page."""
    assert counted(in_base64(TREE + 7 * (b"9 0 obj\n" + page + b"\nendobj\n"))) == 7


def test_pages_that_are_compressed_are_counted() -> None:
    """In several streams, beside others, of which one is broken."""
    pdf = TREE + packed(4 * PAGE) + packed(b"no page") + packed(8 * PAGE) + b"<< /Type /ObjStm >>\nstream\nbroken"
    assert counted(in_base64(pdf)) == 12


def test_what_shows_no_page_is_taken_by_its_size() -> None:
    """Encrypted, say; and what is no base64 is nothing that anybody reads."""
    noise = random.Random(1).randbytes(100_000)
    assert counted(in_base64(noise)) == pages_of_size(len(in_base64(noise))) == 6
    assert (counted("é"), pages_of_size(0), pages_of_size(32 * 1024 * 1024)) == (1, 1, PAGES_MAX)


def test_what_would_unpack_without_end_is_looked_into_so_far() -> None:
    """A bomb of a gigabyte, a hundred times, and 24 MB of nothing: each in a moment, and no more than may be asked."""
    bomb = packed(PAGE + bytes(64 * STREAM_BYTES_MAX))
    started = time.process_time()
    assert counted(in_base64(TREE + 1000 * bomb)) == PAGES_MAX
    assert counted(in_base64(24 * 1024 * 1024 * b"/")) == PAGES_MAX
    assert counted(in_base64(3 * 1024 * 1024 * b"/ObjStm ")) == PAGES_MAX
    assert counted(in_base64(1000 * PAGE)) == PAGES_MAX
    took_s = time.process_time() - started
    print(f"{took_s * 1000:.0f} ms")
    assert took_s < 2


def test_however_many_documents_unpack_without_end_they_are_looked_into_so_far() -> None:
    """Of a thousand that a body has room for, none keeps everybody waiting; the rest of them goes by its size."""
    small = 100 * packed(bytes(STREAM_BYTES_MAX))
    documents = [in_base64(small + PAGE)] * 1000
    counter, started = PageCounter(), time.process_time()
    pages = [counter.count(document) for document in documents]
    assert time.process_time() - started < 2
    assert pages[0] == pages[-1] == pages_of_size(len(documents[0])) == 2
    # An honest one is looked into whole.
    honest = TREE + DECOMPRESSED_BYTES_MAX // STREAM_BYTES_MAX // 2 * packed(PAGE + bytes(STREAM_BYTES_MAX - len(PAGE)))
    assert counted(in_base64(honest)) == 16
