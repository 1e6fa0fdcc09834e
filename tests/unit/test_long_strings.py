"""JSON with long strings: decoding and encoding in steps give what msgspec gives."""

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailrace.proto import long_strings
from tailrace.proto.decoding import DECODE_ERRORS

CHARACTERS = ["a", '"', "\\", "\n", "/", "u", "d83d", "\\u", "é", "€", "\U0001f600", "\ufffd"]
TEXT = st.lists(st.sampled_from(CHARACTERS), max_size=80).map("".join)
LEAVES = TEXT | st.none() | st.integers(0, 9)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner))


@pytest.fixture(autouse=True, scope="module")
def short_pieces() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_strings, "LONG_BYTES", 10)
        patch.setattr(long_strings, "PIECE_BYTES", 23)
        yield


def decode(raw: bytes) -> object:
    try:
        return msgspec.json.decode(raw)
    except DECODE_ERRORS:
        return DECODE_ERRORS


async def decode_in_steps(raw: bytes) -> object:
    try:
        rest, strings = await long_strings.replace_long_strings(raw)
        return long_strings.put_back(msgspec.json.decode(rest), strings)
    except DECODE_ERRORS:
        return DECODE_ERRORS


@given(VALUES, st.booleans(), st.integers(0), st.sampled_from([b"", b'"', b"\\", b"\xff", b"\x01", b"\\ud83d"]))
async def test_decoding_in_steps_equals_msgspecs(value: object, is_ascii: bool, where: int, mutation: bytes) -> None:
    """Also of JSON that is not valid."""
    raw = json.dumps(value, ensure_ascii=is_ascii).encode()
    where %= len(raw)
    for each in (raw, raw[:where] + mutation + raw[where:], raw[:where]):
        assert await decode_in_steps(each) == decode(each)


@given(st.binary(max_size=80), st.integers(0), st.sampled_from(["", "=", "==", "*", "é", "A"]))
@example(bytes(18), 24, "=")
def test_base64_in_pieces_equals_that_of_the_standard_library(content: bytes, where: int, mutation: str) -> None:
    """Also of text that is not valid."""

    def decode_or_none(decode: Callable[[str], bytes], text: str) -> bytes | None:
        try:
            return decode(text)
        except ValueError:
            return None

    text = base64.b64encode(content).decode()
    text = text[: where % 80] + mutation + text[where % 80 :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_strings, "PIECE_BYTES", 24)
        in_pieces = decode_or_none(long_strings.decode_base64, text)
    assert in_pieces == decode_or_none(partial(base64.b64decode, validate=True), text)


@given(VALUES, TEXT)
async def test_encoding_in_steps_equals_msgspecs(value: object, text: str) -> None:
    assert b"".join(await long_strings.encode({"value": value, text: 1})) == msgspec.json.encode(
        {"value": value, text: 1}
    )
    assert b"".join(await long_strings.encode(value, is_sorted=True)) == msgspec.json.encode(value, order="sorted")
    assert await long_strings.decode_text(text.encode()) == text
