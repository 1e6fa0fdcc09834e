"""The backend `claude` against the simulated Claude: events come whole, every failure has its code, leaving is seen."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.deploy.simulated_claude.server import serving
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError

STALL_TIMEOUT_S = 0.8


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Where a simulated Claude listens that nobody else uses."""
    async with serving() as url:
        yield url


@asynccontextmanager
async def claude_at(url: str, api_key: str = "sk-secret-key") -> AsyncIterator[AnthropicApi]:
    claude = AnthropicApi(api_key, url, connect_timeout_s=0.6, stall_timeout_s=STALL_TIMEOUT_S)
    try:
        yield claude
    finally:
        await claude.close()


def asking(line: str, **more: Any) -> Call:
    call = Call(model="claude-sonnet-5-5", max_tokens=1000, messages=[Message("user", f"secret\n{line}")])
    return msgspec.structs.replace(call, **more)


async def answer(claude: AnthropicApi, call: Call) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.raw) async for event in claude.answer(call)]


async def gather(events: AsyncIterator[ModelEvent], received: list[ModelEvent]) -> None:
    async for event in events:
        received.append(event)  # noqa: PERF401 - what came before a failure is to be kept


async def stats_when(url: str, **expected: int) -> None:
    """Waits a second at the most for the simulated Claude's stats to hold `expected`."""
    seen: dict[str, int] = {}
    async with httpx2.AsyncClient(base_url=url) as client:
        try:
            async with asyncio.timeout(1):
                while {name: seen.get(name) for name in expected} != expected:
                    seen = (await client.get("/_sim/stats")).json()
        except TimeoutError:
            pytest.fail(f"expected {expected}, last seen {seen}")


@pytest.mark.rule("R6")
async def test_an_answer_is_the_events_that_are_stored(address: str) -> None:
    """Backend.answer: raw data of each event, in order, without `ping` and `message_stop`."""
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    async with claude_at(address) as claude:
        events = await answer(claude, asking("#sim words=3 rate=0 tool=look", system="Be brief.", tools=tools))
    assert [event["type"] for event in events if event["type"] != "content_block_delta"] == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "content_block_start",
        "content_block_stop",
        "message_delta",
    ]
    texts = [event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta"]
    assert "".join(texts) == "w000000 w000001 w000002"
    assert events[0]["message"]["usage"]["input_tokens"] == 7  # the system prompt has been sent, too


@pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    ("model", "tail"),
    [
        ("claude-sonnet-4-5", [Message("assistant", "w000000 w0")]),
        (
            "claude-sonnet-5-5",
            [
                Message("assistant", [{"type": "text", "text": "w000000 w0"}]),
                Message("user", 'Your previous response was interrupted and ended with "w0". Continue.'),
            ],
        ),
    ],
)
async def test_an_answer_can_be_continued_in_both_forms(address: str, model: str, tail: list[Message]) -> None:
    """A prefill for the 4.5 models, a user message for later ones: the rest, byte for byte."""
    messages = [Message("user", "#sim words=3 rate=0"), *tail]
    async with claude_at(address) as claude:
        events = await answer(claude, asking("", model=model, messages=messages))
    assert "".join(e["delta"]["text"] for e in events if e["type"] == "content_block_delta") == "00001 w000002"


@pytest.mark.rule("R6")
@pytest.mark.parametrize(
    ("line", "events", "code"),
    [
        ("fault=429 retry_after=7", 0, "backend_rate_limited"),
        ("fault=529", 0, "backend_overloaded"),
        ("fault=500", 0, "backend_failed"),
        ("fault=html", 0, "backend_broken"),
        ("fault=error@3", 5, "backend_overloaded"),
        ("fault=429@3", 5, "backend_rate_limited"),
        ("fault=500@3", 5, "backend_failed"),
        ("fault=cut@3", 5, "backend_broken"),
        ("fault=eof@3", 5, "backend_broken"),
        ("fault=garbage@3", 5, "backend_broken"),
        ("fault=stall@3", 5, "backend_stalled"),
        ("wait=5", 2, "backend_stalled"),
        ("words=x", 0, "backend_refused_request"),
    ],
)
async def test_a_failure_has_its_code_and_what_came_before_is_kept(
    address: str, line: str, events: int, code: str
) -> None:
    """Whatever shape a failure takes, it is one BackendError; and it tells neither the key nor the text."""
    received: list[ModelEvent] = []
    async with claude_at(address) as claude:
        answered = claude.answer(asking(f"#sim words=9 rate=0 {line}"))
        with pytest.raises(BackendError) as failure:
            await gather(answered, received)
    assert (failure.value.code, len(received)) == (code, events)
    assert failure.value.retry_after_s == (7 if "retry_after" in line else None)
    assert "secret" not in str(failure.value)
    assert "w00000" not in str(failure.value)


@pytest.mark.parametrize(
    ("change", "key", "code"),
    [
        ({"model": "claude-unknown"}, "sk", "backend_refused_request"),
        ({"max_tokens": 0}, "sk", "backend_refused_request"),
        ({}, "bad-key", "backend_refused_key"),
    ],
)
async def test_a_refusal_keeps_the_words_of_the_api(address: str, change: dict[str, Any], key: str, code: str) -> None:
    """Nobody can repair a request by `Error code: 400`."""
    async with claude_at(address, key) as claude:
        with pytest.raises(BackendError, match=r"claude-unknown|max_tokens|x-api-key") as failure:
            await answer(claude, asking("", **change))
    assert failure.value.code == code


async def test_nobody_there_is_unreachable() -> None:
    """A port where nobody listens, and a name that nobody has."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        for url in (f"http://127.0.0.1:{closed.getsockname()[1]}", "http://nobody.invalid"):
            async with claude_at(url) as claude:
                with pytest.raises(BackendError) as failure:
                    await answer(claude, asking(""))
            assert failure.value.code == "backend_unreachable"


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "backend_unreachable"),
        (b"SSH-2.0 hello\r\n\r\n", "backend_broken"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "backend_broken"),
        (HEAD + b"content-length: 0\r\n\r\n", "backend_broken"),
        (HEAD + b'\r\ndata: {"type":"message_stop"}\n\n', "backend_broken"),
        (HEAD + b'\r\ndata: {"type":"message_start","message":' + b"[" * 100_000 + b"\n\n", "backend_broken"),
        (HEAD + b"content-length: 99\r\n\r\nevent: ", "backend_broken"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nevent\r\nzz\r\n", "backend_broken"),
        (HEAD + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nevent", "backend_broken"),
        (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\n<ht>", "backend_failed"),
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 90\r\n\r\n{", "backend_broken"),
        (
            b"HTTP/1.1 302 Found\r\nlocation: https://nobody.invalid/\r\ncontent-length: 0\r\n\r\n",
            "backend_unreachable",
        ),
    ],
)
async def test_what_is_not_the_api_has_its_code_too(sent: bytes, code: str) -> None:
    """Proxies, captive portals and crashed servers answer in ways that no SDK documents."""
    async with listening(sent) as (url, _), claude_at(url) as claude:
        with pytest.raises(BackendError) as failure:
            await answer(claude, asking(""))
    assert failure.value.code == code


async def test_a_call_of_a_million_values_stops_nobody() -> None:
    """Leases are renewed on the same loop: the SDK's own encoding would stop it for longer than they last."""
    results = Message("user", [{"type": "tool_result", "content": [[]] * 1_000_000}])
    silences = []

    async def beat() -> None:
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(0)
            silences.append(loop.time() - before)

    async with listening(b"") as (url, _), claude_at(url) as claude:
        beating = asyncio.create_task(beat())
        await asyncio.sleep(0)
        with pytest.raises(BackendError):
            await answer(claude, asking("", messages=[results]))
        beating.cancel()
    assert max(silences) < 0.5


async def test_the_models_are_those_of_the_key(address: str) -> None:
    """All on one page, each with what the API tells of it."""
    async with claude_at(address) as claude:
        models = (await claude.models()).data
    assert len({model.id for model in models}) == len(models) > 10
    (sonnet,) = [model for model in models if model.id == "claude-sonnet-4-5-20250929"]
    assert (str(sonnet.created_at), sonnet.max_input_tokens, sonnet.max_tokens) == (
        "2025-09-29 00:00:00+00:00",
        200_000,
        64_000,
    )
    assert msgspec.json.decode(sonnet.capabilities)["pdf_input"] == {"supported": True}


async def test_a_prompt_is_counted_as_it_came(address: str) -> None:
    """The number is the API's, and so is the sentence when there is none."""
    asked = b'{"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "one two"}]}'
    async with claude_at(address) as claude:
        assert await claude.count_tokens(asked, "") == b'{"input_tokens":2}'
        with pytest.raises(BackendError) as failure:
            await claude.count_tokens(b'{"model": "claude-sonnet-5-5", "messages": []}', "a-beta,another")
    assert (failure.value.code, failure.value.message) == (
        "backend_refused_request",
        "messages: at least one message is required",
    )


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "backend_unreachable"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\n<html", "backend_broken"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", "backend_broken"),
        (b"HTTP/1.1 429 Slow\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n", "backend_rate_limited"),
    ],
)
async def test_a_count_that_is_none_has_its_code(sent: bytes, code: str) -> None:
    """A page with status 200 is not a number of tokens."""
    async with listening(sent) as (url, _), claude_at(url) as claude:
        with pytest.raises(BackendError) as failure:
            await claude.count_tokens(b"{}", "")
    assert (failure.value.code, failure.value.retry_after_s) == (code, 3 if code == "backend_rate_limited" else None)


async def test_a_beta_is_named_to_the_api(address: str) -> None:
    """The header as it came, on the request that carries the body as it came."""
    asked = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "one"}], "telepathy": [1]}
    async with claude_at(address) as claude:
        await claude.count_tokens(msgspec.json.encode(asked), "one-2026-01-01,two")
    async with httpx2.AsyncClient(base_url=address) as client:
        last = (await client.get("/_sim/last")).json()
    assert last == {"body": asked, "betas": "one-2026-01-01,two", "version": "2026-10-21"}


async def test_a_probe_costs_nothing(address: str) -> None:
    """It asks for the models, not for an answer."""
    async with claude_at(address) as claude:
        await claude.models()
    await stats_when(address, calls=0)


@pytest.mark.parametrize(
    ("key", "path", "code"), [("bad-key", "", "backend_refused_key"), ("sk", "/v9", "backend_refused_request")]
)
async def test_a_probe_finds_what_every_call_would(address: str, key: str, path: str, code: str) -> None:
    """A key that is refused, and an address that is not quite the API's."""
    async with claude_at(address + path, key) as claude:
        with pytest.raises(BackendError) as failure:
            await claude.models()
    assert failure.value.code == code


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"", "backend_unreachable"),
        (b"SSH-2.0 hello\r\n\r\n", "backend_broken"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\n<html", "backend_broken"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", "backend_broken"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{", "backend_unreachable"),
    ],
)
async def test_a_probe_is_not_content_with_any_answer(sent: bytes, code: str) -> None:
    """A captive portal says 200 to everything."""
    async with listening(sent) as (url, _), claude_at(url) as claude:
        with pytest.raises(BackendError) as failure:
            await claude.models()
    assert failure.value.code == code


@pytest.mark.parametrize("line", ["words=9 fault=stall@2", "words=9000 rate=50", "words=200000 rate=0"])
async def test_closing_the_iterator_closes_the_stream_at_once(address: str, line: str) -> None:
    """Backend.answer: closing stops the bill, whether the stream was silent, busy or blocked."""
    async with claude_at(address) as claude:
        async with aclosing(claude.answer(asking(f"#sim {line}", max_tokens=1_000_000))) as events:
            await anext(events)
            await stats_when(address, streams_open=1)
        await stats_when(address, streams_open=0, streams_aborted=1)


async def test_cancelling_the_reading_task_closes_the_stream_at_once(address: str) -> None:
    """A generator that is stopped, or whose turn was cancelled, does not let the model go on."""
    async with claude_at(address) as claude:
        reading = asyncio.create_task(answer(claude, asking("#sim words=9000 rate=100")))
        await stats_when(address, streams_open=1)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await stats_when(address, streams_open=0, streams_aborted=1)


async def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    """The end of a response often comes a moment after its last event; waiting for it saves a handshake a turn."""
    stop = b'data: {"type":"message_start","message":{}}\n\ndata: {"type":"message_stop"}\n\n'
    whole = HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(stop), stop)
    is_read = asyncio.Event()
    async with listening(whole, is_read, b"0\r\n\r\n") as (url, connections), claude_at(url) as claude:
        for _ in range(3):
            async for event in claude.answer(asking("")):
                assert bytes(event.raw) == b'{"type":"message_start","message":{}}'
                is_read.set()
        assert len(connections) == 1


@asynccontextmanager
async def listening(
    reply: bytes, is_read: asyncio.Event | None = None, ends: bytes = b""
) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """A server that answers every request with `reply`; once that is read it `ends` and goes on, or else it closes."""
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with closing(writer):
            while await request(reader):
                writer.write(reply)
                await writer.drain()
                if is_read is None:
                    break
                await is_read.wait()
                is_read.clear()
                writer.write(ends)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections


async def request(reader: asyncio.StreamReader) -> bytes:
    """A whole request, so that closing afterwards does not reset the connection; nothing when the client has left."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    lines = head.lower().split(b"\r\n")
    length = next((line for line in lines if line.startswith(b"content-length:")), b"content-length:0")
    return head + await reader.readexactly(int(length.split(b":")[1]))
