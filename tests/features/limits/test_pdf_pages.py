"""The estimate of the pages of a PDF."""

import base64
import random
import time
import zlib
from collections.abc import Callable

import pytest

from tailrace.features.limits.pdf_pages import (
    DECOMPRESSED_BYTES_MAX,
    PAGES_MAX,
    STREAM_BYTES_MAX,
    PageCounter,
    pages_of_size,
)
from tailrace.proto.long_strings import PIECE_BYTES

PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] >>"
TREE = b"%PDF-1.5\n2 0 obj\n<< /Type /Pages /Kids [3 0 R] /Count 9 >>\nendobj\n"


def count_pages(base64: str) -> int:
    return PageCounter().count(base64)


def in_base64(pdf: bytes) -> str:
    return base64.b64encode(pdf).decode()


def pack_objects(objects: bytes) -> bytes:
    """Returns a compressed object stream of PDF 1.5."""
    compressed = zlib.compress(objects)
    head = b"<< /Type /ObjStm /N 9 /First 40 /Filter /FlateDecode /Length %d >>" % len(compressed)
    return b"7 0 obj\n" + head + b"\nstream\r\n" + compressed + b"\nendstream\nendobj\n"


@pytest.mark.parametrize(
    "page", [PAGE.replace(b" /Page", space + b"/Page") for space in (b" ", b"", b"\r\n", b"  \t\0\f")]
)
def test_page_objects_are_counted_and_page_tree_nodes_are_not(page: bytes) -> None:
    assert count_pages(in_base64(TREE + 7 * (b"9 0 obj\n" + page + b"\nendobj\n"))) == 7


@pytest.mark.parametrize("encode", [base64.b64encode, base64.encodebytes], ids=["one line", "many lines"])
def test_the_pages_of_a_long_pdf_are_counted_over_all_pieces(encode: Callable[[bytes], bytes]) -> None:
    """A page may begin in one piece and end in the next."""
    assert count_pages(encode(TREE + 550 * (PAGE + bytes(977))).decode()) == 550
    borders = b"".join(PAGE.rjust(PIECE_BYTES + 3) for _ in range(len(PAGE)))
    assert count_pages(encode(borders).decode()) == len(PAGE)


def test_pages_in_compressed_object_streams_are_counted() -> None:
    """A broken stream among them is skipped."""
    pdf = (
        TREE
        + pack_objects(4 * PAGE)
        + pack_objects(b"no page")
        + pack_objects(8 * PAGE)
        + b"<< /Type /ObjStm >>\nstream\nbroken"
    )
    assert count_pages(in_base64(pdf)) == 12


def test_a_pdf_without_visible_pages_is_estimated_by_size() -> None:
    """An encrypted one, for example; what is not base64 counts one page."""
    noise = random.Random(1).randbytes(100_000)
    assert count_pages(in_base64(noise)) == pages_of_size(len(in_base64(noise))) == 6
    assert (count_pages("é"), pages_of_size(0), pages_of_size(32 * 1024 * 1024)) == (1, 1, PAGES_MAX)


def test_decompression_stops_at_the_limit() -> None:
    """For a bomb of a gigabyte, a hundred bombs, and 24 MB of zeros."""
    bomb = pack_objects(PAGE + bytes(64 * STREAM_BYTES_MAX))
    started = time.process_time()
    assert count_pages(in_base64(TREE + 1000 * bomb)) == PAGES_MAX
    assert count_pages(in_base64(24 * 1024 * 1024 * b"/")) == PAGES_MAX
    assert count_pages(in_base64(3 * 1024 * 1024 * b"/ObjStm ")) == PAGES_MAX
    assert count_pages(in_base64(1000 * PAGE)) == PAGES_MAX
    took_s = time.process_time() - started
    print(f"{took_s * 1000:.0f} ms")
    assert took_s < 2


def test_all_documents_of_a_request_share_one_decompression_limit() -> None:
    """The rest is estimated by size."""
    small = 100 * pack_objects(bytes(STREAM_BYTES_MAX))
    documents = [in_base64(small + PAGE)] * 1000
    counter, started = PageCounter(), time.process_time()
    pages = [counter.count(document) for document in documents]
    assert time.process_time() - started < 2
    assert pages[0] == pages[-1] == pages_of_size(len(documents[0])) == 2
    # An honest one is looked into whole.
    honest = TREE + DECOMPRESSED_BYTES_MAX // STREAM_BYTES_MAX // 2 * pack_objects(
        PAGE + bytes(STREAM_BYTES_MAX - len(PAGE))
    )
    assert count_pages(in_base64(honest)) == 16
