"""JSON that is valid but that msgspec refuses: wrappers, regular forms of events, and what clients and models get."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailrace.gateway.turns.request_body import refuse_blob_references
from tailrace.proto import odd_json
from tailrace.proto.errors import Refused
from tailrace.proto.fold import INPUT_LEVELS_MAX
from tailrace.proto.odd_json import KEY
from tailrace.protocols.common.history_items import build_call

pytestmark = pytest.mark.rule("R125")

HALF = '{"a":"x\\ud83dy"}'
ODD_OBJECTS = [
    HALF,
    '{"a": "\\udc00"}',
    '{"n": 1e400}',
    '{"n": [-1.5E+999, {"m": 1.7976931348623159e308}]}',
    '{"n": ' + "9" * 5000 + "}",
    '{"\\ud83d": 1}',
    '{"tailrace:json": "1"}',
    '{"a": {"\\u0074ailrace:json": "[1]"}}',
    '{"a": [{"tailrace:json": "}", "b": 1}]}',
]
INVALID = ['{"a": NaN}', '{"a": 1e400', '{"a": -Infinity}', '{"a": "\\ud83d}', "[1e400]", '"\\ud83d"', "1e400", ""]

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.text()
    | st.characters(categories=["Cs"])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.just(KEY),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just(KEY), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("text", ODD_OBJECTS)
def test_an_object_that_msgspec_refuses_is_kept_as_its_text(text: str) -> None:
    """It passes through stored JSON, and comes out byte for byte."""
    decoded = odd_json.decode_object(text, INPUT_LEVELS_MAX)
    stored = msgspec.json.decode(msgspec.json.encode({"input": decoded, "b": [decoded]}))
    assert odd_json.encode(stored) == f'{{"input":{text},"b":[{text}]}}'.encode()


@pytest.mark.parametrize("text", ODD_OBJECTS)
def test_a_client_sends_arguments_back_as_it_got_them_and_no_wrapper_of_its_own(text: str) -> None:
    """A client of OpenAI's protocols sends each call of the model again, in every later request."""
    block = build_call("call_1", "f", text)
    refuse_blob_references([[block]])
    assert odd_json.encode(block["input"]) == text.encode()
    with pytest.raises(Refused):
        refuse_blob_references([[{**block, "input": msgspec.json.decode(msgspec.json.encode(odd_json.wrap(text)))}]])


@pytest.mark.parametrize(
    "text", ['{"a":1}', '{"a":"\\u00e9 tailrace:json"}', "{}", '{"a":123456789012345678901234567890}']
)
def test_an_object_that_msgspec_accepts_is_decoded(text: str) -> None:
    assert odd_json.decode_object(text, INPUT_LEVELS_MAX) == json.loads(text)


@pytest.mark.parametrize("text", INVALID)
def test_a_text_without_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        odd_json.decode_object(text, INPUT_LEVELS_MAX)


@pytest.mark.rule("R7")
@pytest.mark.parametrize("inner", ["1", "1e400"])
def test_the_depth_limit_holds_for_odd_json_too(inner: str) -> None:
    def nested(levels: int) -> str:
        return '{"a":' * levels + inner + "}" * levels

    assert odd_json.decode_object(nested(INPUT_LEVELS_MAX), INPUT_LEVELS_MAX)
    with pytest.raises(ValueError, match="nested"):
        odd_json.decode_object(nested(INPUT_LEVELS_MAX + 1), INPUT_LEVELS_MAX)
    with pytest.raises((ValueError, RecursionError)):
        odd_json.decode_object(nested(100_000), INPUT_LEVELS_MAX)


@given(st.dictionaries(st.text(max_size=3) | st.just(KEY), VALUES, max_size=4))
def test_any_object_comes_out_as_it_went_in(fields: dict[str, Any]) -> None:
    """Whatever the model writes, also the key of wrappers and texts that look like one."""
    text = json.dumps(fields)
    stored = msgspec.json.decode(msgspec.json.encode({"input": odd_json.decode_object(text, 10)}))
    assert json.loads(odd_json.encode(stored)) == {"input": fields}


@pytest.mark.parametrize("text", ['1}, "model": "other"', "", "{", '"', "NaN", '{"a":1}}'])
def test_a_wrapper_with_an_invalid_text_stays_a_wrapper(text: str) -> None:
    """It would end the JSON around it."""
    encoded = msgspec.json.encode({"a": odd_json.wrap(text)})
    assert odd_json.unwrap(encoded) == encoded


def test_a_text_that_looks_like_a_wrapper_stays_a_text() -> None:
    looks = '{"tailrace:json":"1"}'
    assert json.loads(odd_json.encode({"text": looks, "t": '"tailrace:json":"'})) == {
        "text": looks,
        "t": '"tailrace:json":"',
    }


@pytest.mark.parametrize(
    ("text", "accepted"),
    [(HALF, '{"a":"x\\ufffdy"}'), ('{"n": [1e400, 1.50]}', '{"n":[1e400,1.50]}'), ('{"\\udc00": 1}', '{"\\ufffd":1}')],
)
def test_a_model_gets_numbers_as_they_are_and_no_half_of_a_pair(text: str, accepted: str) -> None:
    """Anthropic's API refuses the latter: "no low surrogate in string"."""
    assert odd_json.accepted_by_models(text) == accepted


@pytest.mark.parametrize(
    ("event", "regular"),
    [
        ({"type": "x", "a": "b\ud83d"}, {"type": "x", "a": "b\ufffd"}),
        (
            {
                "type": "content_block_start",
                "content_block": {"type": "tool_use", "id": "\ud83d", "input": {"a": "\udc00"}},
            },
            {
                "type": "content_block_start",
                "content_block": {"type": "tool_use", "id": "\ufffd", "input": {KEY: '{"a":"\\udc00"}'}},
            },
        ),
        ({"type": "x", KEY: "1"}, {"type": "x", KEY: "1", "is_wrapper": False}),
    ],
)
def test_an_odd_event_has_a_regular_form(event: dict[str, Any], regular: dict[str, Any]) -> None:
    made = odd_json.make_regular(json.dumps(event).encode())
    assert made is not None
    assert msgspec.json.decode(made) == regular


def test_numbers_of_an_odd_event_stay_as_they_were_written() -> None:
    made = odd_json.make_regular(b'{"type":"x","a":1.50,"b":1e400,"c":100000000000000000000000,"d":-0}')
    assert made == b'{"type":"x","a":1.50,"b":{"tailrace:json":"1e400"},"c":100000000000000000000000,"d":-0}'


@pytest.mark.parametrize(
    "data", [b'{"type":NaN}', b"[1e400]", b'{"type":"\xff"}', b"", b'{"a":' * 1000 + b"1" + b"}" * 1000]
)
def test_what_is_no_event_has_no_regular_form(data: bytes) -> None:
    assert odd_json.make_regular(data) is None
