"""Whatever is sent: the envelope with a code and a sentence, soon, and never a traceback; and what NATS does to it."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.http import http_protocol as connection
from tailrace.gateway.turns.submit import UNCLEAR
from tailrace.proto.errors import CODES
from tailrace.proto.ids import TurnId, new_id
from tailrace.proto.nats import Connection, TurnLog, fullness, streams
from tailrace.proto.subjects import TurnKey
from tests.harness.freeze import freeze
from tests.harness.readers import read, told
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, on_shared_loop

JSON = {"content-type": "application/json"}
NO_TURN_IDS = [
    *("*", "%3E", ".", "..", "%2e", "%2E%2e", "a.b", "a.*", "%20", "a%20b", "%0d%0a", "a%0d%0aset-cookie:%20x"),
    *("%00", "a%00", "ünïcödé", "%F0%9F%8C%8A", "%ff", "A", "x" * 65, "x" * 4000, "$JS", "%24JS.API", "a%2Fb", "%5c"),
]


def problem(answer: httpx2.Response) -> tuple[int, str, str]:
    """Status, code, message; fails when the body is anything but the envelope that the table of errors wants."""
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"type", "error"}
    assert set(body["error"]) == {"message", "type", "code", "param"}
    error = body["error"]
    # Anthropic's clients look for the first, OpenAI's for the second.
    assert (body["type"], error["param"]) == ("error", None)
    assert (CODES[error["code"]].status, CODES[error["code"]].type) == (answer.status_code, error["type"])
    assert "Traceback" not in error["message"]
    assert 0 < len(error["message"]) < 600
    return answer.status_code, error["code"], error["message"]


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@on_shared_loop
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "json_invalid"),
        (b"{", "json_invalid"),
        (b"[]", "request_invalid"),
        (b"null", "request_invalid"),
        (b'"message"', "request_invalid"),
        (b"{'message': 'hi'}", "json_invalid"),
        (b'{"message": "hi"} {"message": "hi"}', "json_invalid"),
        (b'{"message": NaN}', "json_invalid"),
        (b'{"message": "hi", "max_tokens": Infinity}', "json_invalid"),
        (b'{"message": "\xff"}', "json_invalid"),
        (b'{"message": "\\ud800"}', "json_invalid"),
        (b'{"message": "a\x00b"}', "json_invalid"),
        (b'{"\xff": 1}', "json_invalid"),
        (f'{{"message": "hi", "max_tokens": {"9" * 5000}}}'.encode(), "request_invalid"),
        (f'{{"message": "hi", "system": [{{"a": {"9" * 5000}}}]}}'.encode(), "request_invalid"),
        (f'{{"message": "hi", "system": [{{"a": 1e{"9" * 5000}}}]}}'.encode(), "request_invalid"),
        (json.dumps({"message": "hi", "betas": ["a"] * 65}).encode(), "request_invalid"),
        (nested(90_000).encode(), "request_invalid"),
        (f'{{"message": "hi", "system": [{{"a": {nested(90_000)}}}]}}'.encode(), "json_invalid"),
        (f'{{"message": "hi", "x": {nested(90_000)}}}'.encode(), "request_invalid"),
        (b'{"x` - at `$' + b"[" * 900_000 + b'": 1}', "request_invalid"),
        (b'{"on_interrupt": "x` - at `$' + b"[" * 900_000 + b'"}', "request_invalid"),
    ],
    ids=range(22),
)
async def test_what_is_no_request_is_refused(shared_gateway: Gateway, body: bytes, code: str) -> None:
    """RFC 8259 and the shape of a request, to the letter; depth and digits have an end."""
    answer = await shared_gateway.client.post("/v1/turns", content=body, headers=JSON)
    assert problem(answer)[:2] == (400, code)


@on_shared_loop
@pytest.mark.parametrize("number", ["1e999", "9" * 5000])
async def test_no_number_is_too_large_to_be_refused(shared_gateway: Gateway, number: str) -> None:
    """In a field that this version does not know, too, which goes on to the model as it came."""
    asked = f'{{"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [], "x": {number}}}'.encode()
    answer = await shared_gateway.client.post("/v1/messages", content=asked, headers=JSON)
    assert problem(answer)[:2] == (400, "request_invalid")


@on_shared_loop
@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"message": "hi", "modell": "x"}, "`modell`; there are message, messages, model, system, max_tokens, tools"),
        ({"message": 5}, "$.message"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": 5}]}, "$.messages[1].content"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "`$.messages[0].role`; there are assistant, system, user"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"message": "hi", "metadata": {"a": 1}}, "$.metadata"),
        ({"message": "hi", "max_tokens": "5"}, "$.max_tokens"),
        ({"message": "hi", "on_interrupt": "panic"}, "`$.on_interrupt`; there are continue, fail, restart"),
        ({"message": "hi", "on_disconnect": "panic"}, "on_disconnect"),
        ({"message": "hi", "on_disconnect": "grace:-1"}, "on_disconnect"),
        ({"message": "hi", "on_disconnect": "grace:1.5"}, "on_disconnect"),
        ({"message": "hi", "on_disconnect": "grace:٣"}, "on_disconnect"),
        ({"message": "hi", "max_tokens": 0}, "max_tokens"),
        ({"message": "hi", "max_tokens": 10**9}, "max_tokens"),
        ({}, "message"),
        ({"message": "hi", "messages": []}, "message"),
        ({"messages": []}, "messages"),
        ({"message": ""}, "message"),
        ({"message": " \n "}, "message"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": ""}]}, "messages[1].content"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages"),
        ({"message": "hi", "x" * 100_000: 1}, "xxx"),
        ({"message": "hi", "tools": [json.loads(f'{{"a": {nested(60)}}}')]}, "levels deep"),
    ],
    ids=range(24),
)
async def test_a_request_that_is_wrong_is_told_where(shared_gateway: Gateway, body: object, named: str) -> None:
    """The field, by its path, and what would have fitted there, so that nobody has to guess."""
    status, code, message = problem(await shared_gateway.client.post("/v1/turns", json=body))
    assert (status, code) == (400, "request_invalid")
    assert named in message


@on_shared_loop
async def test_an_unknown_model_is_told_the_known_ones(shared_gateway: Gateway) -> None:
    """With its own code: a client may fall back to another."""
    answer = await shared_gateway.client.post("/v1/turns", json={"message": "hi", "model": "gpt-2"})
    status, code, message = problem(answer)
    assert (status, code) == (400, "model_unknown")
    assert "claude-sonnet-5-5" in message


@on_shared_loop
async def test_an_unknown_dialect_is_refused_before_anything_is_asked(shared_gateway: Gateway) -> None:
    """A turn must not run for a client that could not read it."""
    asked = await shared_gateway.client.post("/v1/turns?dialect=esperanto", json={"message": "hi"})
    assert problem(asked)[:2] == (400, "dialect_unknown")
    assert "tailrace, text, anthropic" in problem(asked)[2]


@on_shared_loop
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-type": "text/plain"}, 415),
        ({"content-type": "application/x-www-form-urlencoded"}, 415),
        ({"content-type": "multipart/form-data; boundary=x"}, 415),
        ({"content-type": "application/jsonp"}, 415),
        ({"content-type": ""}, 415),
        ({}, 415),
        ({**JSON, "content-encoding": "gzip"}, 415),
        ({**JSON, "content-encoding": "br"}, 415),
        ({"content-type": "Application/JSON; charset=utf-8"}, 202),
        ({**JSON, "content-encoding": "identity"}, 202),
    ],
    ids=range(10),
)
async def test_only_plain_json_is_read(shared_gateway: Gateway, headers: dict[str, str], status: int) -> None:
    """A form is what a browser sends for a stranger's page without asking; what is compressed can be a bomb."""
    answer = await shared_gateway.client.post("/v1/turns", content=b'{"message": "hi"}', headers=headers)
    assert answer.status_code == status
    if status == 415:
        assert problem(answer)[1] == "content_type_unsupported"


class Wire:
    """A connection on which a test writes what no library would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, *pieces: str) -> None:
        for piece in pieces:
            self.writer.write(piece.encode())
            await self.writer.drain()

    async def answer(self) -> httpx2.Response:
        """The next response; its body has a length, as all that are not streams have."""
        async with asyncio.timeout(10):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            lower = {name.lower(): value for name, value in headers.items()}
            body = await self.reader.readexactly(int(lower.get("content-length", "0")))
        return httpx2.Response(int(head[0].split()[1]), headers=lower, content=body)

    async def is_closed(self) -> bool:
        """Waits for it, less long than a kept-alive connection may be idle."""
        async with asyncio.timeout(3):
            try:
                return await self.reader.read() == b""
            except ConnectionError:
                return True


@pytest.fixture
async def small_gateway(nats_url: str, new_gateway: NewGateway) -> Gateway:
    """Takes little, and not for long."""
    return await new_gateway(nats_url, body_bytes_max=10_000, body_timeout_s=0.2)


@pytest.fixture
async def wire(small_gateway: Gateway) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", small_gateway.port)
    yield Wire(reader, writer)
    writer.close()


@pytest.fixture
async def large_wire(lone_gateway: Gateway) -> AsyncIterator[Wire]:
    """To a gateway with the limits that are the default."""
    reader, writer = await asyncio.open_connection("127.0.0.1", lone_gateway.port)
    yield Wire(reader, writer)
    writer.close()


POST = f"POST /v1/turns HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n"


async def test_a_body_that_says_that_it_is_too_large_is_not_read(wire: Wire) -> None:
    """413 by Content-Length alone: not one byte of a gigabyte has to be sent to be refused."""
    await wire.send(POST, "content-length: 10001\r\n\r\n")
    assert problem(await wire.answer())[:2] == (413, "body_too_large")


async def test_a_body_in_chunks_is_refused_where_it_becomes_too_large(wire: Wire) -> None:
    """Who does not say how large it is is counted."""
    await wire.send(POST, "transfer-encoding: chunked\r\n\r\n", f"1388\r\n{'a' * 5000}\r\n" * 3)
    assert problem(await wire.answer())[:2] == (413, "body_too_large")


async def test_a_body_of_just_the_size_is_read(small_gateway: Gateway) -> None:
    """The limit is the largest that is taken."""
    empty = len(json.dumps({"message": ""}))
    for size, status in ((10_000, 202), (10_001, 413)):
        content = json.dumps({"message": "a" * (size - empty)}).encode()
        answer = await small_gateway.client.post("/v1/turns", content=content, headers=JSON)
        assert answer.status_code == status


@pytest.mark.parametrize("text", ['{"message": "hi"}', '{"message": "hi"}' + " " * 300_000])
async def test_a_length_may_begin_with_zeros_without_end(large_wire: Wire, text: str) -> None:
    """A number to HTTP, and none to int(), which takes 4300 digits: a body's small or large length is looked at."""
    await large_wire.send(POST, f"content-length: {'0' * 5000}{len(text)}\r\n\r\n", text)
    assert (await large_wire.answer()).status_code == 202


async def test_a_body_that_does_not_arrive_is_not_waited_for(wire: Wire) -> None:
    """408 in time, and the connection is closed: who sends a byte a second would hold it for ever."""
    await wire.send(POST, "content-length: 100\r\n\r\n", '{"mess')
    answer = await wire.answer()
    assert problem(answer)[:2] == (408, "body_timeout")
    assert answer.headers["connection"] == "close"
    assert await wire.is_closed()


async def test_a_connection_is_good_after_a_refusal(wire: Wire) -> None:
    """What was refused before its body was read must not be taken for the next request."""
    body = json.dumps({"message": "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"})
    wrong = POST.replace("application/json", "text/plain")
    await wire.send(wrong, f"content-length: {len(body)}\r\n\r\n", body)
    assert problem(await wire.answer())[0] == 415
    await wire.send(POST, f"content-length: {len(body)}\r\n\r\n", body)
    assert (await wire.answer()).status_code == 202


UPGRADE = "connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAA\r\n"


@pytest.mark.parametrize("pieces", ["one", "two"])
@pytest.mark.parametrize("framing", ["content-length: 17\r\n", "transfer-encoding: chunked\r\n"])
async def test_a_wish_for_another_protocol_is_ignored(wire: Wire, framing: str, pieces: str) -> None:
    """RFC 9110, 7.8: a server may go on in HTTP/1.1. Java's HttpClient wishes with its first request, body and all."""
    body = '{"message": "hi"}'
    sent = body if "length" in framing else f"11\r\n{body}\r\n0\r\n\r\n"
    head = f"{POST}{UPGRADE}{framing}\r\n"
    for _ in range(2):
        await wire.send(*([head + sent] if pieces == "one" else [head, sent]))
        assert (await wire.answer()).status_code == 202


@pytest.mark.rule("S14")
async def test_wishes_for_another_protocol_are_answered_in_their_order(wire: Wire) -> None:
    """Many in one piece, and a request without one after them."""
    wish = f"GET /healthz HTTP/1.1\r\nhost: x\r\n{UPGRADE}\r\n"
    await wire.send(wish * 1500 + "GET /nothing HTTP/1.1\r\nhost: x\r\n\r\n")
    statuses = [(await wire.answer()).status_code for _ in range(1501)]
    assert (set(statuses[:1500]), statuses[1500]) == ({200}, 404)


@pytest.mark.rule("S14")
@pytest.mark.parametrize(("chars", "count"), [(5000, 10), (5, 100)], ids=["cut in bodies", "cut in headers"])
async def test_what_waits_behind_a_stream_is_answered_in_its_order(
    monkeypatch: pytest.MonkeyPatch, lone_gateway: Gateway, large_wire: Wire, chars: int, count: int
) -> None:
    """However long the stream goes on: what has arrived meanwhile is not late, wherever it was cut."""
    monkeypatch.setattr(connection, "HEADERS_TIMEOUT_S", 0.1)
    text = json.dumps({"message": "a" * chars})
    posts = f"{POST}content-length: {len(text)}\r\n\r\n{text}" * count
    await large_wire.send(POST, f"accept: text/event-stream\r\ncontent-length: {len(text)}\r\n\r\n{text}{posts}")
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(10):
        head = (await large_wire.reader.readuntil(b"\r\n\r\n")).decode()
        turn = head.partition("tailrace-turn: ")[2].partition("\r\n")[0]
        await until(lambda: asyncio.get_running_loop().time() > began + 0.3)
        await lone_gateway.client.post(f"/v1/turns/{turn}/cancel")
        await large_wire.reader.readuntil(b"\r\n0\r\n\r\n")
    assert [(await large_wire.answer()).status_code for _ in range(count)] == [202] * count


async def test_a_request_with_two_lengths_is_refused(wire: Wire) -> None:
    """What a proxy and we would read differently is how requests are smuggled."""
    await wire.send(POST, "content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", "0\r\n\r\n")
    assert (await wire.answer()).status_code == 400
    assert await wire.is_closed()


@pytest.mark.rule("S14")
async def test_headers_that_do_not_end_are_not_kept(wire: Wire) -> None:
    """httptools would keep a megabyte of them for somebody without a key, and then the next."""
    await wire.send("GET /healthz HTTP/1.1\r\nhost: x\r\n")
    taken = 0
    with suppress(ConnectionError):
        for taken in range(5000):
            await wire.send(f"x-{taken}: {'a' * 10_000}\r\n")
    assert taken < 2000  # 20 MB: what the buffers of two sockets take


@pytest.mark.rule("S14")
@pytest.mark.parametrize("key", [KEY, "nobody's"])
@pytest.mark.parametrize("endless", ["0\r\n", "0\r\nx: ", "2;"], ids=["trailers", "trailer", "extension"])
async def test_what_is_neither_headers_nor_body_has_an_end(large_wire: Wire, key: str, endless: str) -> None:
    """RFC 9112 lets trailers follow a body; the parser would keep them without end, also for somebody without a key."""
    await large_wire.send(POST.replace(KEY, key), "transfer-encoding: chunked\r\n\r\n", endless)
    line = f"x: {'a' * 10_000}\r\n" if endless == "0\r\n" else "a" * 10_000
    taken = 0
    with suppress(ConnectionError):
        while taken < 5000:
            await large_wire.send(line)
            taken += 1
    assert taken < 2000  # 20 MB: what the buffers of two sockets take


async def test_a_body_in_many_small_chunks_is_no_header(large_wire: Wire) -> None:
    """Their sizes weigh more than all headers may, and are none."""
    body = json.dumps({"message": "a" * 30_000})
    await large_wire.send(POST, "Transfer-Encoding: Chunked \r\n\r\n")
    await large_wire.send(
        *("".join(f"1\r\n{one}\r\n" for one in body[at : at + 100]) for at in range(0, len(body), 100))
    )
    await large_wire.send("0\r\n\r\n")
    assert (await large_wire.answer()).status_code == 202


async def test_what_follows_a_body_is_no_header(large_wire: Wire) -> None:
    """RFC 9110, 6.5.1: whatever judges headers has judged them by then."""
    body = json.dumps({"message": "#sim words=1 rate=0"})
    trailers = "host: evil.example\r\nidempotency-key: no key\r\nx-api-key: nobody's\r\n"
    await large_wire.send(POST, f"transfer-encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n{trailers}\r\n")
    assert (await large_wire.answer()).status_code == 202


async def test_a_refusal_is_never_the_answer_to_the_request_before(large_wire: Wire) -> None:
    """That one is stored, and may be asked for again under its key; of a refusal it would be taken for not stored."""
    body = json.dumps({"message": "#sim words=1 rate=0"})
    await large_wire.send(f"{POST}content-length: {len(body)}\r\n\r\n{body}GET /healthz HTTP/1.1\r\n\r\n")
    assert await large_wire.is_closed()


@pytest.mark.parametrize("late", ["a", "\r\n"])
async def test_who_is_answered_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, lone_gateway: Gateway, late: str
) -> None:
    """A byte of a body that nobody reads any more, or of nothing, would keep the connection for ever."""
    monkeypatch.setattr(connection, "ANSWERED_TIMEOUT_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", lone_gateway.port)
    wire = Wire(reader, writer)
    length = 100 if late == "a" else 0
    await wire.send(POST.replace(KEY, "nobody's"), f"content-length: {length}\r\n\r\n")
    assert (await wire.answer()).status_code == 401
    await wire.send(late)
    assert await wire.is_closed()
    writer.close()


async def test_headers_and_a_body_in_one_piece_are_told_apart(large_wire: Wire) -> None:
    """A large body that comes together with its headers does not make them large; nor do those of the next request."""
    body = json.dumps({"message": "a" * 200_000})
    for _ in range(2):
        await large_wire.send(f"{POST}content-length: {len(body)}\r\n\r\n{body}")
        assert (await large_wire.answer()).status_code == 202


@pytest.mark.rule("S14")
@pytest.mark.parametrize("said", ["", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nhost: x\r\n"])
async def test_who_does_not_finish_its_headers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, lone_gateway: Gateway, said: str
) -> None:
    """A thousand connections that say nothing would otherwise be open for ever. Who had begun to is told why: 408."""
    monkeypatch.setattr(connection, "HEADERS_TIMEOUT_S", 0.1)
    good = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    for before in ("", good) if said else ("",):
        reader, writer = await asyncio.open_connection("127.0.0.1", lone_gateway.port)
        wire = Wire(reader, writer)
        if before:
            await wire.send(before)
            assert (await wire.answer()).status_code == 200
        await wire.send(said)
        if said:
            assert problem(await wire.answer())[:2] == (408, "headers_timeout")
        assert await wire.is_closed()
        writer.close()


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n" + "a: b\r\n" * 99, 200, ""),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n" + "a: b\r\n" * 100, 431, "headers_too_large"),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\n" + "a: b\r\n" * 10_000, 431, "headers_too_large"),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\na: " + "b" * 400_000, 431, "headers_too_large"),
        ("GET /healthz?" + "b" * 400_000, 431, "headers_too_large"),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n", 400, "http_invalid"),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\na\x00: b\r\n", 400, "http_invalid"),
        ("GET healthz HTTP/1.1\r\nhost: x\r\n", 400, "http_invalid"),
        ("WHAT /healthz HTTP/1.1\r\nhost: x\r\n", 400, "http_invalid"),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "http_invalid"),
        ("GET /healthz HTTP/1.1\r\n", 400, "http_invalid"),
        ("GET /healthz HTTP/1.1\r\nhost: x\r\nhost: x\r\n", 400, "http_invalid"),
        ("GET /healthz HTTP/1.0\r\n", 200, ""),
        ("GET /healthz HTTP/1.0\r\nhost: x\r\nhost: x\r\n", 400, "http_invalid"),
        ("POST /v1/turns HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n", 400, "http_invalid"),
    ],
    ids=[
        *("most", "one more", "10k", "long", "url", "folded", "NUL", "no path", "no method", "TLS"),
        *("no host", "two hosts", "1.0", "1.0, two hosts", "gzip"),
    ],
)
async def test_what_is_no_request_of_ours_is_told_so(wire: Wire, head: str, status: int, code: str) -> None:
    """In the envelope of every other refusal, and then the connection is closed."""
    await wire.send(f"{head}\r\n")
    answer = await wire.answer()
    assert answer.status_code == status
    if code:
        assert problem(answer)[1] == code
        assert answer.headers["connection"] == "close"
        assert await wire.is_closed()


@pytest.mark.parametrize(("version", "first"), [("1.0", b"HTTP/1.1 202"), ("1.1", b"HTTP/1.1 100")])
async def test_only_who_knows_a_100_is_told_to_go_on(large_wire: Wire, version: str, first: bytes) -> None:
    """RFC 9110, 10.1.1: a client of HTTP/1.0 would take it for the answer."""
    body = json.dumps({"message": "#sim words=1 rate=0"})
    asked = POST.replace("HTTP/1.1", f"HTTP/{version}")
    await large_wire.send(f"{asked}expect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n{body}")
    assert (await large_wire.reader.readline()).startswith(first)


@on_shared_loop
@pytest.mark.parametrize("turn", NO_TURN_IDS)
async def test_what_cannot_be_a_turns_id_is_a_turn_that_is_not_there(shared_gateway: Gateway, turn: str) -> None:
    """No character of a client becomes a part of a subject; and the answer does not say why."""
    reader, writer = await asyncio.open_connection("127.0.0.1", shared_gateway.port)
    wire = Wire(reader, writer)
    for method, suffix in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        path = f"/v1/turns/{turn}{suffix}"
        await wire.send(f"{method} {path} HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\r\n")
        answer = await wire.answer()
        if "ü" in turn:
            # Not a request line at all, and uvicorn's to refuse.
            assert answer.status_code == 400
            break
        status, code, _ = problem(answer)
        assert (status, code) in {(404, "turn_not_found"), (404, "route_not_found")}, path
    writer.close()


@on_shared_loop
@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "route_not_found"),
        ("GET", "/v1/turns//events", 404, "route_not_found"),
        ("POST", "/v1/turns/", 404, "route_not_found"),
        ("GET", "/v1/sessions/", 404, "route_not_found"),
        ("GET", "/healthz/", 404, "route_not_found"),
        ("GET", "/v1/turns", 405, "method_not_allowed"),
        ("PUT", "/v1/turns/abc", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/turns", 405, "method_not_allowed"),
        ("POST", "/healthz", 405, "method_not_allowed"),
    ],
)
async def test_what_no_route_takes_is_told_so(
    shared_gateway: Gateway, method: str, path: str, status: int, code: str
) -> None:
    """In the same envelope as everything else; a wrong method is told the right ones. Nothing is redirected."""
    answer = await shared_gateway.client.request(method, path)
    assert problem(answer)[:2] == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


@on_shared_loop
@pytest.mark.parametrize("where", ["nobody", "", "*", "a.b", "x\x00y", "x" * 5000, "🌊", "' OR 1=1 --", "\r\n"])
async def test_a_follow_up_to_what_is_not_there_is_not_found(shared_gateway: Gateway, where: str) -> None:
    """A session or a parent of somebody else, or of nobody; any text will do to ask for it."""
    for name, code in (("session", "session_not_found"), ("parent", "parent_not_found")):
        answer = await shared_gateway.client.post("/v1/turns", json={"message": "and?", name: where})
        assert problem(answer)[:2] == (404, code)


async def test_while_nats_is_away_clients_are_told_to_come_back(
    own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """503 with Retry-After within six seconds on every route that needs it; and no restart to mend it."""
    gateway = await new_gateway(own_server.url)
    turn = (await gateway.client.post("/v1/turns", json={"message": "hi"})).json()["turn"]
    await own_server.stop(SIGKILL)
    started = time.monotonic()
    answers = await asyncio.gather(
        gateway.client.post("/v1/turns", json={"message": "hi"}),
        gateway.client.post("/v1/turns", json={"message": "hi"}, headers={"idempotency-key": "k"}),
        gateway.client.post("/v1/turns", json={"message": "hi", "session": "s"}),
        gateway.client.get(f"/v1/turns/{turn}"),
        gateway.client.get(f"/v1/turns/{turn}/events"),
        gateway.client.get(f"/v1/turns/{turn}/events?after=1&dialect=text"),
        gateway.client.get(f"/v1/turns/{turn}/events?after=1&dialect=anthropic"),
        gateway.client.post(f"/v1/turns/{turn}/cancel"),
        gateway.client.get("/v1/sessions"),
    )
    took_s = time.monotonic() - started
    assert [problem(answer)[0] for answer in answers] == [503] * len(answers)
    assert {answer.headers["retry-after"] for answer in answers} == {"2"}
    assert {problem(answer)[1] for answer in answers} == {"log_unavailable", "persistence_unavailable"}
    assert took_s < 6
    await own_server.start()

    async def works() -> bool:
        return (await gateway.client.post("/v1/turns", json={"message": "hi"})).status_code == 202

    await until(works)
    assert (await gateway.client.get(f"/v1/turns/{turn}")).json()["turn"] == turn


# nats-py leaves its socket to a frozen server to the garbage collector.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function StreamWriter:pytest.PytestUnraisableExceptionWarning"
)
async def test_a_post_that_a_silent_server_does_not_answer_waits_no_longer_than_it_is_to(
    own_server: NatsServer, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that hangs is missed after seconds, and one try of an append would wait for it: the POST does not."""
    monkeypatch.setattr("tailrace.proto.nats.jetstream_log.PUBLISH_TIMEOUT_S", 60)
    gateway = await new_gateway(own_server.url, accept_timeout_s=0.3)
    freeze(own_server)
    try:
        answer = await gateway.client.post("/v1/turns", json={"message": "hi"})
    finally:
        own_server.signal(SIGCONT)
    assert problem(answer) == (503, "log_unavailable", UNCLEAR)


async def test_a_post_that_the_log_did_not_answer_is_told_how_to_ask_again(
    own_server: NatsServer, new_gateway: NewGateway
) -> None:
    """It may be stored or not: the sentence says what is safe, and names no turn that nobody was told of."""
    gateway = await new_gateway(own_server.url, accept_timeout_s=0.1)
    await own_server.stop(SIGKILL)
    answer = await gateway.client.post("/v1/turns", json={"message": "hi"})
    assert problem(answer) == (503, "log_unavailable", UNCLEAR)
    assert "Idempotency-Key" in UNCLEAR
    await own_server.start()

    async def is_accepted() -> bool:
        return (await gateway.client.post("/v1/turns", json={"message": "hi"})).status_code == 202

    await until(is_accepted)


async def test_a_reader_outlives_the_absence_of_nats(
    own_server: NatsServer, new_gateway: NewGateway, own_log: TurnLog, key: TurnKey
) -> None:
    """It gets heartbeats, and then the rest, in the same connection; one who leaves meanwhile harms nothing."""
    gateway = await new_gateway(own_server.url, heartbeat_s=0.05, linger_s=0)
    other = TurnKey(key.tenant, TurnId(new_id()))
    writer, second = Writer(own_log, key), Writer(own_log, other)
    await writer.open("a")
    await second.open("a")
    async with gateway.client.stream("GET", f"/v1/turns/{key.turn}/events") as response:
        body = response.aiter_raw()
        received = await anext(body)
        async with gateway.client.stream("GET", f"/v1/turns/{other.turn}/events") as leaving:
            await anext(leaving.aiter_raw())
            await own_server.stop(SIGKILL)
        for _ in range(5):
            received += await anext(body)
        await own_server.start()
        await writer.say("b")
        await writer.end()
        received += b"".join([piece async for piece in body])
    assert received.count(b": hb\n") >= 3
    assert b'{"type":"delta","text":"b"}' in received
    assert b'"type":"done"' in received
    assert (await read(gateway.client, other.turn, most=2)).over == "left"


async def test_a_full_log_takes_no_new_turns_and_lets_the_running_ones_end(
    tmp_path: Path, new_gateway: NewGateway, key: TurnKey
) -> None:
    """503 `log_full` from nine tenths on: the last tenth belongs to the turns that were accepted."""
    async with NatsServer(tmp_path) as server:
        connection = await Connection.open(server.url, "test")
        await streams.apply(connection, bytes_max=500_000)
        log = TurnLog(connection)
        gateway = await new_gateway(server.url)
        writer, filler = Writer(log, key), Writer(log, TurnKey(key.tenant, TurnId(new_id())))
        await writer.open("a")
        await filler.open()
        while await fullness(connection) < 0.9:
            await filler.say("a" * 10_000)

        async def refused() -> httpx2.Response | None:
            answer = await gateway.client.post("/v1/turns", json={"message": "hi"})
            return answer if answer.status_code != 202 else None

        answer = await until(refused)
        assert answer is not None
        await writer.say("b")
        await writer.end()
        ended = await read(gateway.client, key.turn)
        ready = (await gateway.client.get("/readyz")).json()
        await connection.close()
    assert problem(answer)[:2] == (503, "log_full")
    assert answer.headers["retry-after"] == "2"
    assert (ready["log"]["ok"], ready["log"]["detail"][2:]) == (False, "% of the log's bytes are used")
    assert told(frame.sent for frame in ended.frames).text == "ab"
