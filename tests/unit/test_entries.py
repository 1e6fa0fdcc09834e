"""JSON of entries: round trips, entries of other versions, unreadable entries."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.proto import entries
from tailrace.proto.depth import is_deeper
from tailrace.proto.entries import KINDS, Attempt, End, Entry, Event, Request, Unknown, Unreadable, decode, encode
from tailrace.proto.ids import Seq
from tailrace.proto.usage import Usage
from tests.harness.strategies import JSON, TEXTS, any_entries
from tests.harness.turn_builder import raw, request

# What the log of version 1 looks like. These bytes never change: a log that is stored must stay readable.
WRITTEN: dict[str, tuple[bytes, Entry]] = {
    "request": (
        (
            b'{"model":"claude-sonnet-5-5","max_tokens":1000,'
            b'"messages":[{"role":"user","content":"Why is the sky blue?"}],"session":"session-1"}'
        ),
        request(),
    ),
    "attempt": (
        b'{"prev":1,"attempt":1,"generator":"g-1","backend":"claude","mode":"fresh"}',
        Attempt(prev=Seq(1), attempt=1, generator="g-1", backend="claude", mode="fresh"),
    ),
    "event": (
        b'{"prev":2,"attempt":1,"event":{"type":"newer"},"is_hidden":true}',
        Event(prev=Seq(2), attempt=1, event=raw({"type": "newer"}), is_hidden=True),
    ),
    "end": (
        (
            b'{"prev":3,"attempt":1,"outcome":"failed","usage":{"output_tokens":7},"cost_nusd":70000,'
            b'"error":{"code":"interrupted","message":"m"},"text_chars":0,"text_sha256":"e3"}'
        ),
        End(
            prev=Seq(3),
            attempt=1,
            outcome="failed",
            usage=Usage(output_tokens=7),
            cost_nano_usd=70000,
            error=entries.Failure("interrupted", "m"),
            text_chars=0,
            text_sha256="e3",
        ),
    ),
}


@pytest.mark.rule("R5")
@pytest.mark.parametrize("kind", WRITTEN)
def test_an_entry_of_version_1_is_these_bytes(kind: str) -> None:
    """A stored log must stay readable, and two gateways that append the same request must append the same bytes."""
    payload, entry = WRITTEN[kind]
    assert encode(entry) == payload
    assert encode(decode(kind, payload)) == payload
    assert KINDS[type(entry)] == kind


@pytest.mark.rule("R5")
@given(any_entries())
def test_an_encoded_entry_is_decoded_to_the_same(made: tuple[str, Entry]) -> None:
    """And the reverse: an append recognises its own entry by its bytes."""
    kind, entry = made
    payload = encode(entry)
    read = decode(kind, payload)
    assert encode(read) == payload
    if not isinstance(entry, Event):  # two msgspec.Raw of the same bytes are not equal
        assert read == entry


@pytest.mark.rule("R7")
@given(any_entries(), st.dictionaries(TEXTS.map(lambda name: f"new_{name}"), JSON, max_size=3))
def test_fields_that_are_newer_are_passed_over(made: tuple[str, Entry], newer: dict[str, object]) -> None:
    """An older reader reads the entry as if the fields that it does not know were not there."""
    kind, entry = made
    widened = msgspec.json.encode(msgspec.json.decode(encode(entry), type=dict[str, msgspec.Raw]) | newer)
    assert encode(decode(kind, widened)) == encode(entry)


@pytest.mark.rule("R7")
@given(st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True).filter(lambda kind: kind not in WRITTEN), st.integers(0, 99))
def test_a_kind_that_is_newer_is_a_link_and_nothing_else(kind: str, attempt: int) -> None:
    """All that an older reader needs of it is where it stands in the chain."""
    payload = msgspec.json.encode({"prev": 41, "attempt": attempt, "what": ["ever"]})
    assert decode(kind, payload) == Unknown(prev=Seq(41), attempt=attempt)


# Python 3.14 limits the bytes of its stack, and not the levels.
DEEP = b"[" * 1_000_000 + b"]" * 1_000_000


@pytest.mark.rule("R7")
@pytest.mark.parametrize("kind", [*WRITTEN, "newer"])
@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"{}",
        b"\xff",
        b'{"prev":"1","attempt":1}',
        b'{"prev":1,"attempt":"\xff"}',
        b'{"prev":1,"attempt":1.5,"event":{}}',
        b'{"prev":1,"attempt":01,"event":{}}',
        b'{"prev":1,"attempt":1,"event":' + DEEP + b"}",
        b'{"prev":1,"attempt":1,"event":{},"newer":' + DEEP + b"}",
    ],
)
def test_an_undecodable_entry_is_unreadable_and_raises_nothing(kind: str, payload: bytes) -> None:
    entry = decode(kind, payload)
    assert isinstance(entry, Unreadable)


@pytest.mark.rule("R7")
@given(st.sampled_from([*WRITTEN, "newer"]), st.binary(max_size=60))
def test_any_bytes_are_an_entry(kind: str, payload: bytes) -> None:
    assert isinstance(decode(kind, payload), Request | Attempt | Event | End | Unknown | Unreadable)


@pytest.mark.rule("R7")
@pytest.mark.parametrize(
    ("value", "is_too_deep"),
    [("text", False), ([[1]], False), ([[[]]], True), ({"a": [1, {"b": 2}]}, True), ([1, {"a": "b"}], False)],
)
def test_each_list_and_object_is_a_level(value: object, is_too_deep: bool) -> None:
    assert is_deeper(value, 2) is is_too_deep


def test_the_depth_check_stops_at_its_limit() -> None:
    """A value nested deeper than Python's stack is refused like any other."""
    value: object = []
    for _ in range(100_000):
        value = [value]
    assert is_deeper(value, 60)
