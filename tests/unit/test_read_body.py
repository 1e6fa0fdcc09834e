"""A body's type, size and JSON, decided without a server: what may be read, and how what is wrong is named."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, Literal

import msgspec
import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_message_create_params
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from tailrace.gateway.http import read_body
from tailrace.gateway.http.duplicate_keys import require_unique_keys
from tailrace.gateway.http.json_mistake import replace_halves
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX, LargeBodies
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.http.validation_hints import advise, with_key
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tests.harness.loop_pause import longest_lock

PLAIN = (b"content-type", b"application/json")


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    colour: Literal["red", "blue"] | None = None


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    number: int = 0
    several: list[Inner] | None = None
    named: dict[str, Inner] | None = None


class TextBody(msgspec.Struct):
    text: str


def body_request(*pieces: bytes, headers: tuple[tuple[bytes, bytes], ...] = (PLAIN,), is_cut: bool = False) -> Request:
    """A request whose body comes in `pieces`; cut, the client goes away after them."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": piece, "more_body": is_cut or number < len(pieces)}
        for number, piece in enumerate(pieces, start=1)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    receiving: Callable[[], Awaitable[dict[str, Any]]] = receive
    return Request({"type": "http", "method": "POST", "headers": list(headers)}, receiving)


def body_reader(bytes_max: int = 10) -> BodyReader:
    memory = LargeBodies(bytes_max=1_000_000, timeout_s=1)
    return BodyReader(memory, bytes_max=bytes_max, timeout_s=1, rate_min=1)


async def read(request: Request, bytes_max: int = 10) -> bytes:
    async with AsyncExitStack() as holder:
        return await body_reader(bytes_max).read(request, Tenant("a"), holder)


async def test_a_body_in_pieces_is_read_whole() -> None:
    """Up to exactly the limit."""
    assert await read(body_request(b"01234", b"", b"56789")) == b"0123456789"


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (body_request(b"0123456789", b"a"), "body_too_large"),
        (body_request(b"", headers=(PLAIN, (b"content-length", b"11"))), "body_too_large"),
        (body_request(b"", headers=(PLAIN, (b"content-length", b"9" * 30))), "body_too_large"),
        (body_request(b"{", is_cut=True), "request_invalid"),
    ],
    ids=range(4),
)
async def test_an_unacceptable_body_is_refused_with_its_code(request_: Request, code: str) -> None:
    with pytest.raises(Refused) as refused:
        await read(request_)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("type_", "encoding", "is_read"),
    [
        (None, None, False),
        ("text/plain", None, False),
        ("application/jsonp", None, False),
        ("application/x-www-form-urlencoded", None, False),
        ("application/json", "gzip", False),
        ("application/json", "Identity", True),
        ("Application/JSON; charset=utf-8", None, True),
    ],
)
async def test_only_uncompressed_json_is_read(type_: str | None, encoding: str | None, is_read: bool) -> None:
    """Browsers send forms across origins without a preflight; compressed bodies can be bombs."""
    given = {b"content-type": type_, b"content-encoding": encoding}
    request = body_request(
        b"{}", headers=tuple((name, text.encode()) for name, text in given.items() if text is not None)
    )
    if is_read:
        assert await read(request) == b"{}"
    else:
        with pytest.raises(Refused) as refused:
            await read(request)
        assert refused.value.code == "content_type_unsupported"


MISTAKES = {
    "empty": (b" \n", "it is empty; send an object, `{}` if no field is needed"),
    "BOM": (b'\xef\xbb\xbf{"text":"a"}', "it begins with a byte order mark (BOM): send UTF-8 without one"),
    "trailing comma": (b'{"text":"a",}', "trailing comma in object near byte 12"),
    "single quotes": (b"{'text':'a'}", "object keys must be strings `'` at byte 1"),
    "newline": (
        b'{"text":"a\nb"}',
        "invalid character 0x0a, which a string contains only as an escape such as `\\n`, at byte 10",
    ),
    "no-break space": ('{"text":\u00a0"a"}'.encode(), "invalid character U+00A0 at byte 8"),
    "not UTF-8": (b'{"text":"a\xff"}', "byte 10 (0xff) is not valid UTF-8"),
    "NaN": (b'{"text":NaN}', "invalid character `N` at byte 8"),
    "first half": (
        b'{"text":"\\\\ud83d \\ud83d\\ude00 \\ud83d"}',
        r"a string has half of a surrogate pair (`\ud83d` at byte 30): an emoji was cut",
    ),
    "second half": (
        b'{"text":"\\uDE00 a"}',
        r"a string has half of a surrogate pair (`\uDE00` at byte 9): an emoji was cut",
    ),
    "half": (b'{"text":"a', "it ends too early, after 10 bytes: a string, list or object is not closed"),
    "two": (b'{"text":"a"}{}', "trailing characters near byte 13"),
    "deep": (b'{"other":%b}' % (b"[" * 1_000_000 + b"]" * 1_000_000), "it is nested too deeply"),
}


@pytest.mark.parametrize(("raw", "mistake"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_the_json_is_named_with_its_position(raw: bytes, mistake: str) -> None:
    with pytest.raises(Refused) as refused:
        read_body.decode(raw, TextBody)
    assert refused.value.code == "json_invalid"
    assert str(refused.value) == f"the body is not valid JSON (RFC 8259): {mistake}"


@pytest.mark.rule("R125")
@pytest.mark.parametrize(
    ("body", "regular"),
    [
        (b'{"message":"\\\\ud83d \\ud83d\\ude00 \\ud83d"}', b'{"message":"\\\\ud83d \\ud83d\\ude00 \\ufffd"}'),
        (b'{"messages":["\\uDE00\\uD83D\\n"],"x":1}', b'{"messages":["\\ufffd\\ufffd\\n"],"x":1}'),
        (b'{"text":"\\u00e9\\"\\ud83d\\ude00"}', b'{"text":"\\u00e9\\"\\ud83d\\ude00"}'),
    ],
)
def test_halves_of_surrogate_pairs_are_replaced_in_a_body_with_output_of_a_model(body: bytes, regular: bytes) -> None:
    """A page gets them in the input of a tool, and sends them back in every later request."""
    assert replace_halves(body) == regular
    read_body.decode(regular, Any)


@pytest.mark.parametrize(
    "body",
    [
        b'{"message":"x","metadata":{"a":"\\ud800"}}',
        b'{"message":"\\ud800","metadata":{"\\udfff":"a"}}',
        b'["\\ud800"]',
        b'{"message":"\\ud800',
        b'{"messages":"\\ud800","x":' + b"[" * 100_000,
    ],
)
def test_a_half_in_another_field_is_refused(body: bytes) -> None:
    """Not the model has written it."""
    with pytest.raises(Refused):
        read_body.decode(replace_halves(body), Any)


INT = "Expected `int`, got `%s` - at `number`"
NUMBER = "Object contains unknown field `numbre` (did you mean number?); there are number, several, named"
INNER = "Object contains unknown field `x` - at `several[0]`; there are colour"
ENUM = "Invalid enum value 'g' - at `several[0].colour`; there are blue, red"


@pytest.mark.parametrize(
    ("raw", "kind", "param", "message"),
    [
        (b'{"number": "1"}', Shape, "number", INT % "str"),
        (b'{"number": 1.5}', Shape, "number", INT % "float"),
        (b'{"number": ' + b"9" * 5000 + b"}", Shape, "number", "Integer value out of range - at `number`"),
        (b'{"x": 1}', Shape, "x", "Object contains unknown field `x`; there are number, several, named"),
        (b'{"numbre": 1}', Shape, "numbre", NUMBER),
        (b'{"several": [{"x": 1}]}', Shape, "several[0].x", INNER),
        (b'{"named": {"a": {"x": 1}}}', Shape, "named.a.x", INNER.replace("several[0]", "named.a")),
        (b'{"named": {"a": {}, "b": 1}}', Shape, "named.b", "Expected `object`, got `int` - at `named.b`"),
        (b'{"several": [{"colour": "g"}]}', Shape, "several[0].colour", ENUM),
        (b'{"several": 1}', Shape, "several", "Expected `array | null`, got `int` - at `several`"),
        (b"{}", TextBody, "text", "Object missing required field `text`"),
        (b"[]", TextBody, None, "Expected `object`, got `array`"),
    ],
    ids=range(12),
)
def test_the_error_names_the_field_and_lists_what_is_valid_there(
    raw: bytes, kind: type[msgspec.Struct], param: str | None, message: str
) -> None:
    """The lists come from the types. `param` is the path in the notation of OpenAI's API."""
    with pytest.raises(Refused) as refused:
        read_body.decode(raw, kind)
    found = refused.value
    assert (found.code, found.param, found.message) == ("request_invalid", param, message)


@pytest.mark.parametrize("size", [0, SMALL_BYTES_MAX], ids=["small", "large"])
@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b'{"a": 1, "b": {"a": 2}, "c": [{"a": 1}, {"a": 1}], "pad": "%b"}', None),
        (b'{"a": 1, "b": "%b", "a": 2}', "a"),
        (b'{"a": [{"b": "%b"}, {"b": 1, "c": {}, "b": {"b": 1}}]}', "a[1].b"),
        (b'{"a": {"b": 1, "b": 2}, "c": "%b", "a": 3}', "a"),
        (b'{"a": "%b", "\\u0061": "b"}', "a"),
        (b'{"a": "\\\\", "b": "\\"a\\": %b", "c": 1, "c": 2}', "c"),
        (b'{"' + b"k" * 99 + b'": "%b", "' + b"k" * 98 + b'" : 1}', None),
    ],
    ids=range(7),
)
def test_a_key_that_occurs_twice_is_refused_with_its_path(raw: bytes, path: str | None, size: int) -> None:
    """msgspec takes the last one; another parser on the way may take the first one."""
    body = raw % (b"x" * size)
    read_body.decode(body, dict[str, Any])
    if path is None:
        require_unique_keys(body)
        return
    with pytest.raises(Refused) as refused:
        require_unique_keys(body)
    assert (refused.value.code, refused.value.param) == ("request_invalid", path)


REFUSED_SAMPLING = " (put it into `options`, but the current models refuse sampling)"


@pytest.mark.parametrize(
    ("field", "kind", "hint"),
    [
        ("stream", NewTurn, " (send `Accept: text/event-stream` to receive the stream)"),
        ("thinking", NewTurn, " (put it into `options`)"),
        ("stop_sequences", NewTurn, " (put it into `options`)"),
        ("tool_choice", NewTurn, " (put it into `options`)"),
        ("speed", NewTurn, " (put it into `options`)"),
        ("thread", NewTurn, " (send the new messages and their `session`)"),
        ("stop", NewTurn, " (put `stop_sequences` into `options`)"),
        *((name, NewTurn, REFUSED_SAMPLING) for name in ("temperature", "top_p", "top_k")),
        *((name, NewTurn, " (the user's question is `message`)") for name in ("content", "input", "question")),
        ("temperature", Shape, ""),
        ("presence", NewTurn, ""),
        ("messagee", NewTurn, " (did you mean message?)"),
    ],
)
def test_the_error_says_where_a_field_of_another_api_belongs(field: str, kind: type[msgspec.Struct], hint: str) -> None:
    with pytest.raises(Refused) as refused:
        read_body.decode(b'{"%b": 1}' % field.encode(), kind)
    assert refused.value.message.startswith(f"Object contains unknown field `{field}`{hint}; there are ")


def test_each_parameter_of_anthropics_sdk_is_a_field_or_has_a_hint() -> None:
    """Those of the plain and of the beta messages, with the headers that are parameters there."""
    kinds = (message_create_params, beta_message_create_params)
    parameters = {name for kind in kinds for name in inspect.get_annotations(kind.MessageCreateParamsBase)}
    assert {"messages", "speed", "mcp_servers", "diagnostics", "workspace_id"} <= parameters
    fields = set(NewTurn.__struct_fields__)
    assert {name for name in parameters - fields if not advise(name, fields)} == set()


@pytest.mark.timeout(10)  # It was hours.
@pytest.mark.parametrize(
    ("before", "after", "hint"),
    [
        (b'{"x` - at `$', b'": 1}', "number, several, named"),
        (b'{"several": [{"x` - at `$', b'": 1}]}', "colour"),
        (b'{"several": [{"colour": "x` - at `$', b'"}]}', "blue, red"),
    ],
    ids=range(3),
)
def test_a_value_that_looks_like_a_path_is_not_searched_and_quoted_only_in_part(
    before: bytes, after: bytes, hint: str
) -> None:
    """Megabytes of such text cost no more than others, and do not hide the real path. A response does not grow."""
    with pytest.raises(Refused) as refused:
        read_body.decode(before + b"[" * 4_000_000 + after, Shape)
    quoted, _, fitting = refused.value.message.partition("; there are ")
    assert (len(quoted), fitting) == (read_body.QUOTED_CHARS_MAX, hint)


NAMES = st.text(st.sampled_from('",[{\\x'), max_size=4)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.integers(), NAMES),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
)


def count_decoded_values(value: Any) -> int:
    """Counts as `read_body.count_values` does, in decoded JSON."""
    match value:
        case list() | dict():
            inside = list(value.values()) if isinstance(value, dict) else value
            return max(len(inside), 1) + sum(map(count_decoded_values, inside))
        case _:
            return 0


@given(JSON_VALUES)
def test_values_are_counted_without_the_content_of_strings(value: Any) -> None:
    """Also with more marks in strings than the limit."""
    marks = '[{,"\\' * read_body.VALUES_MAX
    assert read_body.count_values(msgspec.json.encode([value, marks])) == count_decoded_values([value, marks])


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"0", b'""', b'{"":0}', b'{"":""}', b'"\\\\"', b'"\\",["'], ids=range(8))
async def test_too_many_values_are_refused_before_they_are_decoded(raw: bytes) -> None:
    """Each value costs time in every process that the request passes."""
    with pytest.raises(Refused) as refused:
        await body_reader().decode(b"[" + b",".join([raw] * (read_body.VALUES_MAX + 1)) + b"]", Shape)
    assert refused.value.code == "body_too_large"


@pytest.mark.parametrize(
    "text", ['{"a": [1, 2], "b": "\\\\"}, ' * read_body.VALUES_MAX, "," * 150_000], ids=["2 MB", "small"]
)
async def test_a_long_text_may_have_any_marks(text: str) -> None:
    """Code and JSON in a string are one value."""
    assert await body_reader().decode(msgspec.json.encode({"text": text}), TextBody) == TextBody(text)


@pytest.mark.parametrize("text", ["," * 15_000, "\n" * 7_500], ids=["marks", "escapes"])
async def test_the_event_loop_runs_while_a_body_of_many_texts_is_decoded(text: str) -> None:
    """Each is too short to be cut out of the body. The loop stood still for 60 to 80 % of the time."""
    raw = msgspec.json.encode([text] * 1000)
    decoding = asyncio.create_task(body_reader().decode(raw, list[str]))
    assert await longest_lock(decoding) < 1 / 2
    assert await decoding == [text] * 1000


class Inputs(msgspec.Struct):
    inputs: list[dict[str, int]]


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b'{"inputs":[{"a":1,"b":"c"}]}', "`$.inputs[0].b`"),
        # The second value of the key has no second member.
        (b'{"inputs":[{},{"a":"b"}],"inputs":[]}', "`$.inputs[1][...]`"),
        (b'{"inputs":[%b{"a":"b"}]}' % (b"{}," * 9_000), "`$.inputs[9000][...]`"),
    ],
    ids=["found", "key twice", "large"],
)
def test_the_key_of_a_wrong_member_is_named_if_the_body_is_small_and_has_it_once(raw: bytes, where: str) -> None:
    with pytest.raises(msgspec.ValidationError) as error:
        msgspec.json.decode(raw, type=Inputs)
    assert with_key(Inputs, str(error.value), raw).endswith(where)
