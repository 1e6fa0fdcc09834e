"""Lifting and resolving, for any request: nothing is lost on the way, and nothing long stays."""

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.models.offer import Offer
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.request_body import BODY_LEVELS_MAX, NewTurn, build_entry
from tailrace.generators.continuation import build_call
from tailrace.proto import blobs
from tailrace.proto.blobs import INLINE_BYTES_MAX, REFERENCE_KEY, Blob, lift, references, resolve
from tailrace.proto.depth import LEVELS_MAX, is_deeper
from tailrace.proto.entries import Batch, Message, Request, encode
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId
from tests.harness.turn_builder import request

LONG = "x" * (INLINE_BYTES_MAX + 1)
SHA256 = hashlib.sha256(LONG.encode()).hexdigest()
REFERENCE = {"tailrace:blob": SHA256, "bytes": len(LONG)}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": LONG}}

# Around the very limit, in characters of one to four bytes; and short ones.
TEXTS = st.one_of(
    st.text(max_size=20),
    st.builds(
        lambda char, size, end: char * (size // len(char.encode())) + end,
        st.sampled_from("xü€😀"),
        st.sampled_from([INLINE_BYTES_MAX - 1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 8, 3 * INLINE_BYTES_MAX]),
        st.sampled_from(["", "y"]),
    ),
)
NAMES = st.sampled_from(["type", "text", "data", "bytes", REFERENCE_KEY])
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
BLOCKS = st.lists(st.dictionaries(NAMES, JSON, max_size=3), max_size=3)
CONTENTS = st.one_of(TEXTS, BLOCKS)
REQUESTS = st.builds(
    lambda contents, system, tools: request(
        messages=[Message("user", content, {"effort": "low"}) for content in contents], system=system, tools=tools
    ),
    st.lists(CONTENTS, min_size=1, max_size=3),
    st.one_of(st.none(), CONTENTS),
    st.one_of(st.none(), BLOCKS),
)


def in_blocks(turn_request: Request) -> Request:
    """The same to the API: a long text that stands alone, as a block."""

    def block(content: Any) -> Any:
        is_long = isinstance(content, str) and len(content.encode()) > INLINE_BYTES_MAX
        return [{"type": "text", "text": content}] if is_long else content

    messages = [msgspec.structs.replace(message, content=block(message.content)) for message in turn_request.messages]
    return msgspec.structs.replace(turn_request, messages=messages, system=block(turn_request.system))


def strings_in(value: Any) -> list[str]:
    match value:
        case str():
            return [value]
        case list():
            return [leaf for one in value for leaf in strings_in(one)]
        case dict():
            return [leaf for one in value.values() for leaf in strings_in(one)]
        case _:
            return []


@pytest.mark.rule("R33")
@given(REQUESTS)
def test_a_resolved_request_equals_the_original(turn_request: Request) -> None:
    """The model gets the request that the client sent."""
    entry, lifted = lift(turn_request)
    texts = {sha256: content.decode() for sha256, content in lifted.items()}
    assert resolve(build_call(entry), texts) == build_call(in_blocks(turn_request))


@pytest.mark.rule("R33")
@given(REQUESTS)
def test_a_lifted_request_has_no_long_text(turn_request: Request) -> None:
    """Each blob is named by the hash of its content and is referred to; lifting again changes nothing."""
    entry, lifted = lift(turn_request)
    everything = [[message.content for message in entry.messages], entry.system, entry.tools]
    assert max((len(leaf.encode()) for leaf in strings_in(everything)), default=0) <= INLINE_BYTES_MAX
    blobs = {Blob(hashlib.sha256(content).hexdigest(), len(content)) for content in lifted.values()}
    assert set(references(entry)) == blobs
    assert set(lifted) == {blob.sha256 for blob in blobs}
    assert lift(entry) == (entry, {})


@pytest.mark.rule("R33")
def test_a_reference_is_exactly_this() -> None:
    """A picture, a long text that stands alone, a system prompt and a tool, byte for byte as they are stored."""
    turn_request = request(
        messages=[Message("user", LONG), Message("assistant", "short"), Message("user", [PICTURE])],
        system=LONG,
        tools=[{"name": "look", "description": LONG}],
    )
    entry, lifted = lift(turn_request)
    assert lifted == {SHA256: LONG.encode()}
    text = {"type": "text", "text": REFERENCE}
    assert entry == request(
        messages=[
            Message("user", [text]),
            Message("assistant", "short"),
            Message("user", [{"type": "image", "source": PICTURE["source"] | {"data": REFERENCE}}]),  # type: ignore[operator]
        ],
        system=[text],
        tools=[{"name": "look", "description": REFERENCE}],
    )
    assert b'{"tailrace:blob":"%b","bytes":65537}' % SHA256.encode() in encode(entry)


@given(REQUESTS)
def test_a_request_lists_all_blobs_that_it_needs(turn_request: Request) -> None:
    """A batch needs the blob of its inputs, and the blobs that these need."""
    entry, lifted = lift(turn_request)
    assert blobs.blobs_needed(entry) == set(lifted)
    batch = Batch("a" * 64, 1, 1, 1, ["b" * 64])
    assert blobs.blobs_needed(msgspec.structs.replace(entry, batch=batch)) == {"a" * 64, "b" * 64, *lifted}


def test_the_same_picture_twice_is_one_blob() -> None:
    """A conversation that a client sends whole each time costs its pictures once."""
    entry, lifted = lift(request(messages=[Message("user", [PICTURE, PICTURE]), Message("user", [PICTURE])]))
    assert (list(lifted), references(entry)) == ([SHA256], [Blob(SHA256, len(LONG))] * 3)


@pytest.mark.rule("R33")
@pytest.mark.parametrize(
    "value",
    [
        {REFERENCE_KEY: SHA256},
        {REFERENCE_KEY: SHA256, "bytes": len(LONG), "type": "text"},
        {REFERENCE_KEY: SHA256, "bytes": str(len(LONG))},
        {REFERENCE_KEY: SHA256, "bytes": INLINE_BYTES_MAX},
        {REFERENCE_KEY: SHA256, "bytes": True},
        {REFERENCE_KEY: SHA256.upper(), "bytes": len(LONG)},
        {REFERENCE_KEY: SHA256 + "\n", "bytes": len(LONG)},
        {REFERENCE_KEY: [SHA256], "bytes": len(LONG)},
    ],
    ids=range(8),
)
def test_an_object_similar_to_a_reference_is_not_a_reference(value: dict[str, Any]) -> None:
    """A model may write it into a tool's input; it stays as it is."""
    turn_request = request(messages=[Message("user", [{"type": "tool_use", "input": value}])])
    assert blobs.parse_reference(value) is None
    assert (references(turn_request), resolve(turn_request, {})) == ([], turn_request)


def test_the_reserved_key_is_found_at_any_depth() -> None:
    """Clients must not send references: they could name blobs of other tenants."""
    assert blobs.has_reserved_key([[{"source": {"data": [REFERENCE]}}], None])
    assert blobs.has_reserved_key({REFERENCE_KEY: 1})
    assert not blobs.has_reserved_key([[{"source": {"data": REFERENCE_KEY}}], "tailrace:blob", None, 1])


@pytest.mark.rule("R33")
def test_a_reference_in_a_sessions_system_prompt_asks_nothing() -> None:
    """It came from a client, before such a session was refused; a turn with its own system prompt goes on."""
    place = Position(session=SessionId("s"), new=[Message("user", "hi")], system=[{"type": "text", "text": REFERENCE}])
    with pytest.raises(Refused) as refused:
        build_entry(NewTurn(message="hi"), place, 1, Offer(), pseudonym=str)
    assert refused.value.code == "request_invalid"
    assert (
        build_entry(NewTurn(message="hi", system="Be brief."), place, 1, Offer(), pseudonym=str).system == "Be brief."
    )


@pytest.mark.rule("R33")
def test_the_depth_limit_of_bodies_leaves_levels_for_references() -> None:
    """The deepest accepted body, lifted and in a page of turns, is within the levels of PROTOCOL R7."""
    block: Any = LONG
    for _ in range(BODY_LEVELS_MAX - 3):
        block = {"in": block}
    assert not is_deeper([[[block]]], BODY_LEVELS_MAX)
    entry, _ = lift(request(messages=[Message("user", [block])]))
    page = {"turns": [{"input": [{"content": entry.messages[0].content}]}]}
    assert is_deeper(page, LEVELS_MAX - 1)
    assert not is_deeper(page, LEVELS_MAX)
