"""Tailrace's transport for SDKs: keys, gateways, cuts and refusals, over a transport of the test."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import httpx2
import openai
import pytest
from anthropic import Anthropic, DefaultHttpxClient
from openai import OpenAI

from tailrace.client import AsyncClient, AsyncResumingTransport, Client, ResumingTransport, TailraceError, proxy
from tests.harness.until import until

A, B = "http://a:1", "http://b:2/app"
SSE = {"content-type": "text/event-stream", "tailrace-turn": "t1"}
BODY = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "Hi."}]}
START = b'event: message_start\ndata: {"type":"message_start"}\nid: 4\n\n'
STOP = b'event: message_delta\ndata: {}\n\nevent: message_stop\ndata: {"type":"message_stop"}\nid: 99\n\n'
CUT, REFUSED = httpx2.ReadError("cut"), httpx2.ConnectError("refused")

Answer = httpx2.Response | Exception


def delta(number: int) -> bytes:
    return b'event: content_block_delta\ndata: {"n":%d}\nid: %d\n\n' % (number, number)


def chunk(content: str, cursor: int | None, **delta: str) -> bytes:
    end = "" if cursor is None else f',"cursor":{cursor}'
    deltas = "".join(f'"{name}":"{value}",' for name, value in delta.items())
    return f'data: {{"id":"c","choices":[{{"index":0,"delta":{{{deltas}"content":"{content}"}}}}]{end}}}\n\n'.encode()


class Body(httpx2.SyncByteStream):
    """A body that arrives in parts, and may end with an error."""

    def __init__(self, *parts: bytes, error: Exception | None = None) -> None:
        self._parts = parts
        self._error = error

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts
        if self._error is not None:
            raise self._error


def cut(*parts: bytes) -> httpx2.Response:
    """Returns a stream that is cut after `parts`."""
    return httpx2.Response(200, headers=SSE, stream=Body(*parts, error=CUT))


def whole(*parts: bytes) -> httpx2.Response:
    return httpx2.Response(200, headers=SSE, stream=Body(*parts))


class Server:
    """Answers each request with the next response, and keeps the requests."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[httpx2.Request] = []
        self._answers = list(answers)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, *gateways: str, **given: Any) -> httpx2.Client:
        transport = ResumingTransport(httpx2.MockTransport(self), gateways=gateways, **given)
        return httpx2.Client(transport=transport, base_url=A, headers={"x-api-key": "k", "content-type": "text/plain"})

    @property
    def urls(self) -> list[str]:
        return [f"{request.method} {request.url}" for request in self.requests]

    @property
    def keys(self) -> list[str | None]:
        return [request.headers.get("idempotency-key") for request in self.requests]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the transport, in seconds, none of which takes place."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def post(client: httpx2.Client, path: str = "/v1/messages", **given: Any) -> bytes:
    """Returns the body of the answer. Raises the error that an SDK would get."""
    with client.stream("POST", path, **(given or {"json": BODY})) as response:
        return b"".join(response.iter_raw())


def test_a_cut_stream_goes_on_at_the_next_gateway_after_the_last_cursor() -> None:
    """What followed the last cursor is read again, and no part of an event is passed on."""
    server = Server(
        cut(START, b": hb\n\n", delta(5), delta(6)[:-1]),
        REFUSED,
        cut(STOP[:30]),
        whole(delta(6), STOP),
    )
    assert post(server.client(f"{B}/v1/")) == START + b": hb\n\n" + delta(5) + delta(6) + STOP
    after = "/v1/turns/t1/events?dialect=anthropic&after=5"
    assert server.urls == [f"POST {A}/v1/messages", f"GET {B}{after}", f"GET {A}{after}", f"GET {B}{after}"]
    assert {request.headers["x-api-key"] for request in server.requests} == {"k"}
    assert [request.headers["host"] for request in server.requests] == ["a:1", "b:2", "a:1", "b:2"]
    # The transport reads the bytes of the gateway.
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert not any("content-type" in request.headers for request in server.requests[1:])


def test_events_of_a_chat_without_a_cursor_are_not_passed_on_alone() -> None:
    """The last entry has several chunks; `[DONE]` follows the cursor of all of them."""
    role, first, last = chunk("", 1, role="assistant"), chunk("Hi", 2), (chunk("!", None), chunk("", 5))
    server = Server(cut(role, first + last[0]), cut(*last), httpx2.Response(204))
    body = BODY | {"stream_options": {"include_usage": True}}
    done = b"data: [DONE]\n\n"
    assert post(server.client(), "/v1/chat/completions", json=body) == role + first + b"".join(last) + done
    query = "/v1/turns/t1/events?dialect=openai-chat-usage&after="
    assert server.urls[1:] == [f"GET {A}{query}2", f"GET {A}{query}5"]


def test_a_response_that_is_read_again_goes_on_after_its_number() -> None:
    def event(number: int, kind: str) -> bytes:
        return f'event: {kind}\ndata: {{"type":"{kind}","sequence_number":{number}}}\n\n'.encode()

    first, last = event(7, "response.output_text.delta"), event(8, "response.completed")
    server = Server(cut(), cut(first), whole(last))
    with server.client().stream("GET", "/v1/responses/resp_t1?stream=true&starting_after=6") as response:
        assert b"".join(response.iter_raw()) == first + last
    path = f"GET {A}/v1/responses/resp_t1?stream=true&starting_after="
    assert server.urls == [f"{path}6", f"{path}6", f"{path}7"]
    assert server.keys == [None] * 3


def test_fifty_cuts_in_a_row_are_healed_if_each_connection_brings_an_event(waits: list[float]) -> None:
    server = Server(cut(START), *(cut(delta(number)) for number in range(5, 54)), whole(STOP))
    assert post(server.client()) == START + b"".join(map(delta, range(5, 54))) + STOP
    assert waits == []


def test_fifty_cuts_in_a_row_without_an_event_are_the_error_of_the_first(waits: list[float]) -> None:
    """After twelve tries, in about 40 seconds: the SDK raises what it raises without the transport."""
    server = Server(cut(START), *(cut(b": hb\n\n") for _ in range(50)))
    with pytest.raises(httpx2.ReadError, match="cut") as raised:
        post(server.client())
    assert len(server.requests) == 1 + 12
    assert 20 < sum(waits) < 60
    assert raised.value is CUT


@pytest.mark.parametrize(
    "error",
    [ssl.SSLError("bad record"), anyio.EndOfStream(), AttributeError("getpeername"), httpx2.ReadTimeout("silence")],
)
def test_an_error_that_httpx2_does_not_convert_is_a_cut(error: Exception) -> None:
    broken = httpx2.Response(200, headers=SSE, stream=Body(START, error=error))
    server = Server(broken, error, whole(STOP))
    assert post(server.client(B)) == START + STOP


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_lost_cursor_and_a_revoked_key_are_the_error_of_the_cut(status: int) -> None:
    """Each gateway is requested once more."""
    server = Server(cut(START), httpx2.Response(status), httpx2.Response(status))
    with pytest.raises(httpx2.ReadError) as raised:
        post(server.client(B))
    assert len(server.requests) == 3
    assert f"{B}: status {status}" in raised.value.__notes__[-1]


def test_a_restart_of_the_answer_is_the_error_of_the_cut() -> None:
    server = Server(cut(START, delta(5)), whole(START, STOP))
    with pytest.raises(httpx2.ReadError):
        post(server.client())


def test_a_clean_end_before_the_end_of_the_answer_is_a_cut() -> None:
    """A proxy may end a broken body as a whole one."""
    server = Server(whole(START, delta(5)), whole(STOP))
    assert post(server.client()) == START + delta(5) + STOP


def test_an_error_event_ends_the_stream_as_it_is() -> None:
    error = b'event: error\ndata: {"type":"error"}\n\n'
    server = Server(whole(START, error))
    assert post(server.client()) == START + error
    broken = Server(cut(START, error))
    with pytest.raises(httpx2.ReadError):
        post(broken.client())
    assert len(broken.requests) == 1


def test_a_gateway_is_asked_again_after_the_time_that_it_names(waits: list[float]) -> None:
    busy = httpx2.Response(503, headers={"retry-after": "7"})
    server = Server(cut(START), busy, httpx2.Response(429), whole(STOP))
    assert post(server.client()) == START + STOP
    assert waits[0] == 7 > waits[1]


@pytest.mark.parametrize("absence", [REFUSED, httpx2.Response(503), httpx2.Response(502)])
def test_a_post_is_repeated_at_another_gateway_with_its_key_and_body(absence: Answer) -> None:
    server = Server(absence, whole(START, STOP), whole(START, STOP))
    client = server.client(B)
    assert post(client) == post(client) == START + STOP
    assert server.urls == [f"POST {A}/v1/messages", f"POST {B}/v1/messages", f"POST {A}/v1/messages"]
    assert len({request.content for request in server.requests}) == 1
    first, second, another = server.keys
    assert first == second != another


def test_the_error_of_a_post_is_one_that_its_sdk_repeats() -> None:
    """anyio fails with another one if a server dies while the connection is made."""
    server = Server(AttributeError("getpeername"), *[REFUSED] * 3, whole(START, STOP))
    with Anthropic(base_url=A, api_key="k", http_client=server.client()) as sdk:
        list(sdk.messages.create(model="m", max_tokens=1, messages=[], stream=True))
    assert [request.headers["x-stainless-retry-count"] for request in server.requests] == [*"0000", "1"]


def test_a_transport_without_tries_passes_the_first_cut_on() -> None:
    server = Server(REFUSED, cut(START))
    for _ in range(2):
        with pytest.raises(httpx2.TransportError):
            post(server.client(tries_max=0))
    assert len(server.requests) == 2


def test_a_base_url_with_a_path_and_a_user_is_kept_apart_from_the_other_gateways() -> None:
    server = Server(REFUSED, whole(START, STOP))
    base = "http://ada:secret@a:1/a%20b"
    with Anthropic(base_url=base, api_key="k", http_client=server.client(B)) as sdk:
        list(sdk.messages.create(model="m", max_tokens=1, messages=[], stream=True))
    assert server.urls[1] == f"POST {B}/v1/messages"


def test_a_post_to_gateways_that_refuse_connections_fails_after_four_tries(waits: list[float]) -> None:
    server = Server(*(httpx2.ConnectError(f"refused {number}") for number in range(8)))
    with pytest.raises(httpx2.ConnectError, match="refused 0"):
        post(server.client(B))
    assert (len(server.requests), len(waits)) == (8, 3)


@pytest.mark.parametrize("failure", [httpx2.ReadTimeout("slow"), httpx2.Response(500), httpx2.Response(504)])
def test_the_repetitions_of_an_sdk_have_the_key_of_the_first_request(failure: Answer) -> None:
    """Each other request has its own, although its content is the same."""
    server = Server(whole(START, STOP), failure, failure, whole(START, STOP))
    with Anthropic(base_url=A, api_key="k", http_client=server.client()) as sdk:
        for _ in range(2):
            list(sdk.messages.create(model="m", max_tokens=1, messages=[], stream=True))
    assert [request.headers["x-stainless-retry-count"] for request in server.requests] == ["0", "0", "1", "2"]
    assert len(set(server.keys[1:])) == 1
    assert server.keys[0] != server.keys[1]


def test_a_key_of_the_app_is_kept() -> None:
    server = Server(cut(), whole(START, STOP))
    assert post(server.client(), json=BODY, headers={"Idempotency-Key": "auto"}) == START + STOP
    assert server.keys == ["auto", None]


def _iterator() -> Iterator[bytes]:
    yield b'{"stream": true}'


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("/v1/messages", {"json": BODY | {"stream": False}}),
        ("/v1/messages", {"json": []}),
        ("/v1/messages", {"content": b"{"}),
        ("/v1/messages/count_tokens", {"json": BODY}),
        ("/v1/turns", {"json": BODY}),
        # It can be sent once.
        ("/v1/messages", {"content": _iterator()}),
    ],
    ids=["whole", "no object", "no JSON", "another route", "turn", "iterator"],
)
def test_any_other_request_is_sent_as_it_is(path: str, given: Any) -> None:
    server = Server(cut(START))
    with pytest.raises(httpx2.ReadError):
        post(server.client(B), path, **given)
    (request,) = server.requests
    assert "idempotency-key" not in request.headers
    assert request.headers["accept-encoding"] != "identity"


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/event-stream"}, SSE | {"content-encoding": "gzip"}, SSE | {"content-type": "x"}]
)
def test_a_stream_that_is_not_tailraces_is_passed_on_as_it_arrives(headers: dict[str, str]) -> None:
    """Also a part of an event, and then its cut."""
    server = Server(httpx2.Response(200, headers=headers, stream=Body(b"data: ha", error=CUT)))
    with server.client().stream("POST", "/v1/messages", json=BODY) as response:
        parts = response.iter_raw()
        assert next(parts) == b"data: ha"
        with pytest.raises(httpx2.ReadError):
            next(parts)
    assert len(server.requests) == 1


def test_a_refusal_is_passed_on() -> None:
    server = Server(httpx2.Response(401, json={"error": {"message": "no"}}))
    with (
        OpenAI(base_url=f"{A}/v1", api_key="k", http_client=server.client(B)) as sdk,
        pytest.raises(openai.AuthenticationError),
    ):
        sdk.chat.completions.create(model="m", messages=[], stream=True)
    assert len(server.requests) == 1


@pytest.mark.parametrize("url", ["localhost:8000", "http://user:secret@a"])
def test_the_url_of_a_gateway_is_checked(url: str) -> None:
    with pytest.raises(TailraceError) as raised:
        ResumingTransport(gateways=[url])
    assert "secret" not in str(raised.value)


def test_to_close_a_response_stops_reading() -> None:
    server = Server(whole(START, delta(5), STOP))
    with server.client().stream("POST", "/v1/messages", json=BODY) as response:
        next(response.iter_raw(chunk_size=1))
    assert len(server.requests) == 1


# The HTTP library of an SDK is known at its first request: anthropic before 1 and openai before 3 have httpx.

LIBRARIES = pytest.mark.parametrize("library", [httpx2, httpx], ids=lambda library: library.__name__)


class Waiting:
    """A server that answers when so many requests are there."""

    def __init__(self, requests: int) -> None:
        self._requests = requests
        self._are_there = asyncio.Event()
        self.open = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        while await reader.readline() not in (b"\r\n", b""):
            pass
        self._requests -= 1
        if self._requests == 0:
            self._are_there.set()
        await self._are_there.wait()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await reader.read()
        writer.close()
        self.open -= 1


@LIBRARIES
async def test_the_default_transport_is_that_of_the_requests_library(library: Any) -> None:
    """It has no limit of connections, and closes all of them. One transport serves both libraries."""
    waiting = Waiting(120)
    async with await asyncio.start_server(waiting, "127.0.0.1", 0, backlog=200) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        transport = AsyncResumingTransport()
        async with library.AsyncClient(transport=transport) as client:
            answers = await asyncio.gather(*(client.get(url, timeout=20) for _ in range(120)))
            assert {answer.text for answer in answers} == {"ok"}
            other = httpx if library is httpx2 else httpx2
            assert (await other.AsyncClient(transport=transport).get(url)).text == "ok"
            assert waiting.open == 121
        await until(lambda: waiting.open == 0)


@LIBRARIES
async def test_threads_share_the_transport_that_the_first_request_makes(
    library: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Slow(library.HTTPTransport):  # type: ignore[misc]
        def __init__(self, **given: Any) -> None:
            made.append(self)
            threading.Event().wait(0.2)
            super().__init__(**given)

    monkeypatch.setattr(library, "HTTPTransport", Slow)
    async with await asyncio.start_server(Waiting(8), "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

        def read() -> None:
            with library.Client(transport=ResumingTransport()) as client, ThreadPoolExecutor(8) as threads:
                assert {answer.text for answer in threads.map(client.get, [url] * 8)} == {"ok"}

        await asyncio.to_thread(read)
    assert len(made) == 1


@LIBRARIES
async def test_a_transport_without_a_request_is_closed(library: Any) -> None:
    with library.Client(transport=ResumingTransport()):
        pass
    ResumingTransport().close()
    async with library.AsyncClient(transport=AsyncResumingTransport()):
        pass
    await AsyncResumingTransport().aclose()


def test_a_transport_of_the_other_library_is_an_error_that_says_what_to_give() -> None:
    transport = ResumingTransport(httpx2.HTTPTransport())
    with pytest.raises(TypeError, match=r"give httpx\.HTTPTransport\(\), or no transport"):
        httpx.Client(transport=transport).post(A, json=BODY)
    http = DefaultHttpxClient(transport=ResumingTransport(httpx.HTTPTransport()))
    with Anthropic(base_url=A, api_key="k", http_client=http, max_retries=0) as sdk, pytest.raises(Exception) as raised:  # noqa: PT011
        sdk.messages.create(model="m", max_tokens=1, messages=[])
    assert "give httpx2.HTTPTransport()" in str(raised.value.__cause__)


@pytest.mark.parametrize("library", [httpx2, httpx])
def test_a_transport_of_the_other_kind_is_refused(library: Any) -> None:
    with pytest.raises(TypeError, match=r"give a transport like httpx2\.HTTPTransport"):
        ResumingTransport(library.AsyncHTTPTransport())
    with pytest.raises(TypeError, match=r"give a transport like httpx2\.AsyncHTTPTransport"):
        AsyncResumingTransport(library.HTTPTransport())


def test_a_client_of_another_kind_is_refused() -> None:
    given: Any
    for given in (httpx.Client(), httpx2.AsyncClient()):
        with pytest.raises(TypeError, match=r"give a client of httpx2\.Client"):
            Client(http=given)
    for given in (httpx.AsyncClient(), httpx2.Client()):
        with pytest.raises(TypeError, match=r"give a client of httpx2\.AsyncClient"):
            AsyncClient(http=given)
        with pytest.raises(TypeError, match=r"give a client of httpx2\.AsyncClient"):
            proxy(may_use=bool, http=given)


def test_a_request_of_an_apps_own_class_belongs_to_its_library() -> None:
    class Own(httpx2.Request):
        """As an app may have."""

    server = Server(REFUSED, whole(START, STOP))
    response = server.client(B).send(Own("POST", f"{A}/v1/messages", json=BODY))
    assert response.content == START + STOP
    with pytest.raises(TypeError, match="neither one of httpx2 nor one of httpx"):
        ResumingTransport().handle_request(object())
