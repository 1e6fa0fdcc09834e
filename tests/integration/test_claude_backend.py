"""The backend `claude` against the simulated Claude and against servers that are not the API."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, closing
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.features.batches.message_batches_api import MessageBatchesApi
from tailrace.features.count_tokens import generator as count_tokens
from tailrace.generators.backends import Call, http_client
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.proto.entries import Message
from tailrace.proto.errors import BackendError
from tests.harness.answers import answer_of
from tests.harness.generator_in_loop import read_stats
from tests.harness.until import until


@asynccontextmanager
async def running_backend(url: str, api_key: str = "sk-secret-key") -> AsyncIterator[AnthropicApi]:
    claude = AnthropicApi(api_key, url, connect_timeout_s=0.6, stall_timeout_s=0.8)
    try:
        yield claude
    finally:
        await claude.close()


def call(line: str = "", **fields: Any) -> Call:
    made = Call(model="claude-sonnet-5-5", max_tokens=1000, messages=[Message("user", f"secret\n{line}")])
    return msgspec.structs.replace(made, **fields)


async def answer(claude: AnthropicApi, call: Call) -> list[dict[str, Any]]:
    return [msgspec.json.decode(event.raw) async for event in answer_of(claude, call)]


async def collect(events: AsyncIterator[ModelEvent], received: list[ModelEvent]) -> None:
    """Appends the events to `received`, which keeps those before a failure."""
    async for event in events:
        received.append(event)  # noqa: PERF401 - a comprehension would lose them


async def count(claude: AnthropicApi) -> bytes:
    return await count_tokens.post(claude, b"{}", "")


async def until_stats(url: str, **expected: int) -> None:
    async def are_equal() -> bool:
        return (await read_stats(url)).items() >= expected.items()

    await until(are_equal)


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
        ("fault=529@3", 5, "backend_overloaded"),
        ("fault=cut@3", 5, "backend_broken"),
        ("fault=eof@3", 5, "backend_broken"),
        ("fault=garbage@3", 5, "backend_unreadable"),
        ("fault=stall@3", 5, "backend_stalled"),
        ("wait=5", 2, "backend_stalled"),
        ("words=x", 0, "backend_refused_request"),
    ],
)
async def test_a_failure_is_a_backend_error_after_the_events_before_it(
    own_claude: str, line: str, events: int, code: str
) -> None:
    """It contains neither the key nor the text."""
    received: list[ModelEvent] = []
    async with running_backend(own_claude) as claude:
        with pytest.raises(BackendError) as failure:
            await collect(answer_of(claude, call(f"#sim words=9 rate=0 {line}")), received)
    assert (failure.value.code, len(received)) == (code, events)
    assert failure.value.retry_after_s == (7 if "retry_after" in line else None)
    assert "secret" not in str(failure.value)
    assert "w00000" not in str(failure.value)


@pytest.mark.timeout(10)
async def test_a_model_that_only_pings_is_stalled(own_claude: str) -> None:
    """The pings keep the connection from being silent; they are no progress of the answer."""
    async with running_backend(own_claude) as claude:
        claude.pings_timeout_s = 0.3
        received: list[ModelEvent] = []
        with pytest.raises(BackendError, match="only pings") as failure:
            await collect(answer_of(claude, call("#sim words=9 rate=0 fault=pings@3")), received)
    assert failure.value.code == "backend_stalled"
    assert sum(event.kind == "content_block_delta" for event in received) == 3


@asynccontextmanager
async def server(
    reply: bytes, wait: Callable[[], Awaitable[object]] | None = None, end: bytes = b""
) -> AsyncIterator[tuple[str, list[asyncio.StreamWriter]]]:
    """A server that answers each request with `reply` and closes, or calls `wait`, sends `end` and goes on.

    Yields its URL and its connections.
    """
    connections: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        with closing(writer):
            while await read_request(reader):
                writer.write(reply)
                await writer.drain()
                if wait is None:
                    break
                await wait()
                writer.write(end)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", connections


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """Reads a whole request, so that closing the connection does not reset it; returns nothing at its end."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""
    lines = head.lower().split(b"\r\n")
    length = next((line for line in lines if line.startswith(b"content-length:")), b"content-length:0")
    return head + await reader.readexactly(int(length.split(b":")[1]))


OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"content-type: text/event-stream\r\n"
JSON = OK + b"content-type: application/json\r\n"
HTML = OK + b"content-type: text/html\r\ncontent-length: 5\r\n\r\n<html"
SSH = b"SSH-2.0 hello\r\n\r\n"
MODELS = AnthropicApi.models
# Captive portals, proxies and crashed servers, for an answer, a count of tokens and a probe.
NOT_THE_API: list[tuple[Callable[[AnthropicApi], Awaitable[object]], bytes, str]] = [
    *(
        (lambda claude: answer(claude, call()), reply, code)
        for reply, code in (
            (b"", "backend_unreachable"),
            (SSH, "backend_broken"),
            (OK + b"content-length: 0\r\n\r\n", "backend_broken"),
            (SSE + b"content-length: 0\r\n\r\n", "backend_broken"),
            (SSE + b'\r\ndata: {"type":"message_stop"}\n\n', "backend_unreadable"),
            (SSE + b'\r\ndata: {"type":"message_start","message":' + b"[" * 100_000 + b"\n\n", "backend_unreadable"),
            (SSE + b"content-length: 99\r\n\r\nevent: ", "backend_broken"),
            (SSE + b"transfer-encoding: chunked\r\n\r\n5\r\nevent\r\nzz\r\n", "backend_broken"),
            (SSE + b"content-encoding: gzip\r\ncontent-length: 5\r\n\r\nevent", "backend_broken"),
            (b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\n<ht>", "backend_failed"),
            (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 90\r\n\r\n{", "backend_refused_request"),
            (b"HTTP/1.1 529 Overloaded\r\ncontent-length: 90\r\n\r\n{", "backend_overloaded"),
            (
                b"HTTP/1.1 529 Overloaded\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd",
                "backend_overloaded",
            ),
            (
                b"HTTP/1.1 302 Found\r\nlocation: https://nobody.invalid/\r\ncontent-length: 0\r\n\r\n",
                "backend_broken",
            ),
        )
    ),
    (count, b"", "backend_unreachable"),
    (count, HTML, "backend_broken"),
    (count, JSON + b"content-length: 2\r\n\r\n{}", "backend_broken"),
    (count, b"HTTP/1.1 429 Slow\r\nretry-after: 3\r\ncontent-length: 0\r\n\r\n", "backend_rate_limited"),
    (MODELS, b"", "backend_unreachable"),
    (MODELS, SSH, "backend_broken"),
    (MODELS, HTML, "backend_broken"),
    (MODELS, JSON + b"content-length: 2\r\n\r\n{}", "backend_broken"),
    (MODELS, JSON + b"content-length: 9\r\n\r\n{", "backend_unreachable"),
]


CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
FIRST_EVENT = b'40\r\ndata: {"type":"message_start","message":{"id":"m","usage":{}}}\n\n\r\n'
BROKEN_IN_ITS_BODY: list[tuple[Callable[[AnthropicApi], Awaitable[object]], bytes, str]] = [
    (lambda claude: answer(claude, call()), SSE + CHUNKED + FIRST_EVENT, "backend_stalled"),
    (lambda claude: answer(claude, call()), b"HTTP/1.1 529 Overloaded\r\n" + CHUNKED, "backend_overloaded"),
    (count, JSON + CHUNKED, "backend_stalled"),
    (lambda claude: MessageBatchesApi(claude.client).retrieve("batch"), JSON + CHUNKED, "backend_stalled"),
]


@pytest.mark.parametrize(
    ("request_", "reply", "code"), BROKEN_IN_ITS_BODY, ids=["answer", "error", "count", "message batch"]
)
async def test_a_malformed_chunk_ends_a_request_as_silence_does(
    request_: Callable[[AnthropicApi], Awaitable[object]], reply: bytes, code: str
) -> None:
    """A proxy writes its error page into the body. aiohttp neither reports it nor goes on with its timer.

    The status of an error is its code, without a body.
    """
    # In one packet with the first chunk, aiohttp would report it. Client and server share an event loop, so the client
    # has read the packet when the server wakes up.
    html = b"<html>502</html>\r\n"
    async with server(reply, lambda: asyncio.sleep(0.2), html) as (url, _), running_backend(url) as claude:
        with pytest.raises(BackendError) as failure:
            async with asyncio.timeout(5):
                await request_(claude)
    assert failure.value.code == code


async def test_a_model_that_only_sends_comments_is_stalled() -> None:
    """Proxies send them to keep a connection open."""
    comment = b"e\r\n: keep-alive\n\n\r\n"
    async with (
        server(SSE + CHUNKED + FIRST_EVENT, lambda: asyncio.sleep(0.4), comment) as (url, _),
        running_backend(url) as claude,
    ):
        claude.pings_timeout_s = 0.3
        with pytest.raises(BackendError, match="only pings or comments"):
            async with asyncio.timeout(5):
                await answer(claude, call())


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
@pytest.mark.parametrize("is_large", [False, True])
async def test_a_server_that_does_not_read_the_request_is_stalled(
    monkeypatch: pytest.MonkeyPatch, is_large: bool
) -> None:
    """Whether the body is sent in one piece or in several."""
    is_done = asyncio.Event()

    async def never_read(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            await is_done.wait()

    monkeypatch.setattr(http_client, "UPLOAD_BYTES_S_MIN", 100_000_000)
    listening = await asyncio.start_server(never_read, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    async with listening, running_backend(url) as claude:
        with pytest.raises(BackendError) as failure:
            async with asyncio.timeout(10):
                await answer(claude, call("x" * 16_000_000, is_large=is_large))
        is_done.set()
    assert failure.value.code == "backend_stalled"


@pytest.mark.parametrize(("request_", "reply", "code"), NOT_THE_API, ids=range(len(NOT_THE_API)))
async def test_a_server_that_is_not_the_api_has_an_error_code(
    request_: Callable[[AnthropicApi], Awaitable[object]], reply: bytes, code: str
) -> None:
    async with server(reply) as (url, _), running_backend(url) as claude:
        with pytest.raises(BackendError) as failure:
            await request_(claude)
    assert failure.value.code == code
    assert failure.value.retry_after_s == (3 if code == "backend_rate_limited" else None)


@pytest.mark.parametrize("is_large", [False, True])
async def test_a_redirect_does_not_send_the_conversation_to_another_server(is_large: bool) -> None:
    async with server(HTML) as (other, connections):
        redirect = b"HTTP/1.1 307 Elsewhere\r\nlocation: %b/\r\ncontent-length: 0\r\n\r\n" % other.encode()
        async with server(redirect) as (url, _), running_backend(url) as claude:
            with pytest.raises(BackendError, match="answered with status 307") as failure:
                await answer(claude, call(is_large=is_large))
    assert (failure.value.code, connections) == ("backend_broken", [])


async def test_a_web_page_instead_of_an_answer_is_named() -> None:
    async with server(HTML) as (url, _), running_backend(url) as claude:
        with pytest.raises(BackendError, match="answered with text/html, not with events"):
            await answer(claude, call())


@pytest.mark.filterwarnings("ignore:Sending a large body directly:ResourceWarning")
async def test_encoding_a_call_of_a_million_values_does_not_block_the_loop() -> None:
    """Leases are renewed on the same loop. The SDK's own encoding would block it for longer than they last.

    CPU time is measured, so that a busy machine does not matter.
    """
    results = Message("user", [{"type": "tool_result", "content": [[]] * 1_000_000}])
    pauses = []

    async def measure() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            pauses.append(time.thread_time() - before)

    async with server(b"") as (url, _), running_backend(url) as claude:
        measuring = asyncio.create_task(measure())
        await asyncio.sleep(0)
        with pytest.raises(BackendError):
            await answer(claude, call(messages=[results]))
        measuring.cancel()
    assert max(pauses) < 0.25


async def test_a_probe_lists_the_models_of_the_key_and_makes_no_call(own_claude: str) -> None:
    async with running_backend(own_claude) as claude:
        models = (await claude.models()).data
    assert len({model.id for model in models}) == len(models) > 10
    (sonnet,) = [model for model in models if model.id == "claude-sonnet-4-5-20250929"]
    assert str(sonnet.created_at) == "2025-09-29 00:00:00+00:00"
    assert (sonnet.max_input_tokens, sonnet.max_tokens) == (200_000, 64_000)
    assert msgspec.json.decode(sonnet.capabilities)["pdf_input"] == {"supported": True}
    await until_stats(own_claude, calls=0)


@pytest.mark.parametrize(
    ("key", "path", "code"), [("bad-key", "", "backend_refused_key"), ("sk", "/v9", "backend_refused_request")]
)
async def test_a_probe_finds_a_wrong_key_and_a_wrong_url(own_claude: str, key: str, path: str, code: str) -> None:
    async with running_backend(own_claude + path, key) as claude:
        with pytest.raises(BackendError) as failure:
            await claude.models()
    assert failure.value.code == code


async def test_a_count_of_tokens_sends_body_and_betas_unchanged(own_claude: str) -> None:
    body = {"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "one two"}], "telepathy": [1]}
    async with (
        running_backend(own_claude) as claude,
        httpx2.AsyncClient(base_url=own_claude, trust_env=False) as client,
    ):
        assert await count_tokens.post(claude, msgspec.json.encode(body), "one-2026-01-01,two") == b'{"input_tokens":2}'
        last = (await client.get("/_sim/last")).json()
        assert last == {"body": body, "betas": "one-2026-01-01,two", "version": "2026-10-21"}
        with pytest.raises(BackendError, match="messages: at least one message is required") as failure:
            await count_tokens.post(claude, msgspec.json.encode(body | {"messages": []}), "")
    assert failure.value.code == "backend_refused_request"


@pytest.mark.parametrize("line", ["words=9 fault=stall@2", "words=9000 rate=50", "words=60000 rate=0"])
async def test_closing_the_iterator_closes_the_connection(own_claude: str, line: str) -> None:
    """Whether the stream is silent, busy or blocked by back-pressure."""
    async with running_backend(own_claude) as claude:
        async with aclosing(answer_of(claude, call(f"#sim {line}", max_tokens=1_000_000))) as events:
            await anext(events)
            await until_stats(own_claude, streams_open=1)
        await until_stats(own_claude, streams_open=0, streams_aborted=1)


async def test_a_delta_is_passed_on_in_the_callback_of_its_socket(own_claude: str) -> None:
    """Without a task: a library whose private parts have changed would make each delta slower, and nothing else."""
    tasks: list[asyncio.Task[Any] | None] = []
    async with running_backend(own_claude) as claude:
        await claude.stream(call("#sim words=9 rate=50"), lambda _: tasks.append(asyncio.current_task()))
    assert tasks.count(None) >= 9


async def test_a_connection_is_reused_after_a_whole_answer() -> None:
    """The end of the response may come a moment after its last event."""
    start = b'{"type":"message_start","message":{}}'
    stop = b'{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{}}'
    events = b'data: %b\n\ndata: %b\n\ndata: {"type":"message_stop"}\n\n' % (start, stop)
    whole = SSE + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(events), events)
    is_read = asyncio.Event()
    async with server(whole, is_read.wait, b"0\r\n\r\n") as (url, connections), running_backend(url) as claude:
        for _ in range(3):
            is_read.clear()
            async for event in answer_of(claude, call()):
                assert bytes(event.raw) in (start, stop)
                is_read.set()
        assert len(connections) == 1


async def test_no_library_limits_the_number_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The concurrency of a generator has no maximum; aiohttp's default is 100 connections."""
    monkeypatch.setattr("anthropic._base_client.DEFAULT_CONNECTION_LIMITS", httpx2.Limits(max_connections=2))
    is_over = asyncio.Event()
    async with server(SSE, is_over.wait) as (url, connections):
        claude = AnthropicApi("sk", url, connect_timeout_s=10, stall_timeout_s=10)
        running = [asyncio.create_task(answer(claude, call())) for _ in range(101)]
        try:
            await until(lambda: len(connections) == len(running), 5)
        finally:
            for one in running:
                one.cancel()
            await asyncio.wait(running)
            await claude.close()
            is_over.set()


async def test_a_compressed_answer_is_read() -> None:
    """The call asks for no compression, but a proxy may compress all the same."""
    events = b'data: {"type":"message_start","message":{}}\n\ndata: {"type":"message_stop"}\n\n'
    stop = b'data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{}}\n\n'
    body = gzip.compress(events.replace(b'data: {"type":"message_stop"', stop + b'data: {"type":"message_stop"'))
    # Media types ignore case (RFC 9110, 8.3.1).
    headers = OK + b"content-type: Text/Event-Stream\r\ncontent-encoding: gzip\r\n"
    reply = headers + b"content-length: %d\r\n\r\n%b" % (len(body), body)
    async with server(reply) as (url, _), running_backend(url) as claude:
        assert [event["type"] for event in await answer(claude, call())] == ["message_start", "message_delta"]
