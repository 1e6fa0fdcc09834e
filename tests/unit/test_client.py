"""The Python client's retries, waits, errors and events, over a transport of the test."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pytest

from tailrace.client import AsyncClient, Client, TailraceError
from tailrace.client.events import Block, Citation, ModelEvent, Reset
from tailrace.deploy.cli.display import PlainDisplay, show

START = b'data: {"type":"start","turn":"t1","session":"s1","model":"m"}\nid: 5\n\n'
DELTA = b'data: {"type":"delta","text":"Hi"}\nid: 7\n\n'
LATER = b'data: {"type":"of a later version","x":1}\nid: 8\n\n'
DONE = b'data: {"type":"done","outcome":"completed","stop_reason":"end_turn","usage":{"output_tokens":1}}\nid: 9\n\n'
SSE = {"content-type": "text/event-stream", "tailrace-turn": "t1"}


class Server:
    """Answers each request with the next response, and keeps the requests."""

    def __init__(self, *responses: httpx2.Response | Exception) -> None:
        self.requests: list[httpx2.Request] = []
        self._responses = list(responses)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        response = self._responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    def client(self, **given: Any) -> Client:
        return Client("http://gateway", http=httpx2.Client(transport=httpx2.MockTransport(self)), **given)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits of the client, in seconds, none of which takes place."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


def stream(*events: bytes) -> httpx2.Response:
    return httpx2.Response(200, headers=SSE, content=b"".join(events))


def refusal_response(status: int, code: str = "rate_limited", **headers: str) -> httpx2.Response:
    sent = {name.replace("_", "-"): text for name, text in headers.items()}
    return httpx2.Response(status, headers=sent, json={"error": {"code": code, "message": "too many"}})


def test_a_post_without_a_clear_answer_is_repeated_with_its_key_and_the_rest_is_requested(waits: list[float]) -> None:
    server = Server(
        httpx2.ReadError("cut"),
        httpx2.Response(502, content=b"<html>"),
        refusal_response(429, retry_after="7"),
        stream(b"retry: 3000\n\n", START, DELTA, DELTA[:-1]),
        stream(b"retry: 3000\n\n"),
        stream(LATER, DONE),
    )
    states: list[str] = []
    answer = server.client(key="k").ask("Hi.", model="opus", on_state=states.append)
    events = list(answer)
    assert [(event.type, event.cursor) for event in events] == [("start", "5"), ("delta", "7"), ("done", "9")]
    end = answer.done()
    assert (end.text, end.outcome, end.usage.output_tokens, end.session) == ("Hi", "completed", 1, "s1")
    posts, gets = server.requests[:4], server.requests[4:]
    assert {(one.method, one.url.path, one.headers["authorization"]) for one in posts} == {
        ("POST", "/v1/turns", "Bearer k")
    }
    assert {one.content for one in posts} == {b'{"message":"Hi.","model":"opus"}'}
    assert len({one.headers["idempotency-key"] for one in posts}) == 1
    assert [(one.url.path, one.headers["last-event-id"]) for one in gets] == [("/v1/turns/t1/events", "7")] * 2
    # Twice its own wait, which grows; then the wait that a refusal, and a stream without an event, ask for.
    assert 0.125 <= waits[0] <= 0.375 <= 2 * waits[1] <= 1.5
    assert waits[2:3] + waits[4:] == [7, 3]
    assert states == ["reconnecting", "live", "reconnecting", "live", "reconnecting", "live", "ended"]


@pytest.mark.parametrize(
    ("response", "message", "status"),
    [
        (refusal_response(401), "too many", 401),
        (refusal_response(429, retry_after="31"), "too many", 429),
        (refusal_response(503, code="log_full"), "too many", 503),
        (httpx2.Response(500, content=b"<html>"), "the gateway answered with status 500", 500),
        (stream(b'data: {"type":"delta"}\n\n'), "an event that cannot be read", None),
        (stream(b"data: {\n\n"), "an event that cannot be read", None),
    ],
)
def test_a_permanent_error_is_raised_without_a_retry(
    response: httpx2.Response, message: str, status: int | None, waits: list[float]
) -> None:
    server = Server(response)
    with pytest.raises(TailraceError, match=message) as refusal:
        server.client().ask("Hi.").done()
    assert (refusal.value.status, waits) == (status, [])


@pytest.mark.parametrize(
    ("send", "tries"),
    [
        (lambda client: client.ask("Hi."), 3),
        (lambda client: client.resume("t1"), 3),
        (lambda client: client.cancel("t1"), 3),
        (lambda client: client.turn("t1"), 3),
        (lambda client: client.request("POST", "/v1/projects", {}), 1),
        (lambda client: client.request("post", "/v1/turns", {}), 1),
        (lambda client: client.request("POST", "/v1/turns", {}, idempotency_key="k"), 3),
    ],
    ids=["ask", "resume", "cancel", "turn", "POST without a key", "post without a key", "POST with a key"],
)
def test_the_last_try_raises_its_error(send: Callable[[Client], object], tries: int, waits: list[float]) -> None:
    """A POST that may have been accepted is not repeated without a key."""
    server = Server(*[httpx2.ConnectError("refused")] * tries)
    with pytest.raises(TailraceError, match=r"cannot connect to http://gateway \(refused\)") as lost:
        send(server.client(tries_max=2))
    assert (lost.value.is_temporary, len(waits)) == (tries > 1, tries - 1)


@pytest.mark.parametrize(
    ("before", "send", "waits_max"),
    [
        ([], lambda client: client.ask("Hi."), 4),
        ([], lambda client: client.turn("t1"), 4),
        ([], lambda client: client.resume("t1"), 12),
        ([stream(START)], lambda client: client.ask("Hi.").done(), 12),
        ([httpx2.Response(502)], lambda client: client.ask("Hi."), 12),
    ],
    ids=["ask", "turn", "resume", "an answer that has begun", "a gateway behind a proxy"],
)
def test_only_a_gateway_that_was_never_reached_is_given_up_soon(
    before: list[httpx2.Response], send: Callable[[Client], object], waits_max: int, waits: list[float]
) -> None:
    """A turn that is running has the patience for a gateway that restarts."""
    server = Server(*before, *[httpx2.ConnectError("refused")] * 13)
    with pytest.raises(TailraceError, match="cannot connect"):
        send(server.client())
    assert len(waits) == waits_max


def test_a_turn_that_has_ended_before_the_cursor_has_the_end_of_its_record() -> None:
    """A proxy may pass the streams alone: then it has no outcome."""
    common = {"turn": "t1", "session": "s1", "model": "opus", "text": "Hi", "cursor": 9, "cost_usd": 0.5, "error": None}
    completed = {**common, "outcome": "completed", "stop_reason": "end_turn", "usage": {"output_tokens": 3}}
    failed = {**common, "outcome": "failed", "usage": {}, "error": {"code": "interrupted", "message": "m"}}
    done, error, unknown = [
        Server(httpx2.Response(204), response).client().resume("t1", after="9").done()
        for response in (
            httpx2.Response(200, json=completed),
            httpx2.Response(200, json=failed),
            refusal_response(404, "turn_not_found"),
        )
    ]
    assert (done.turn, done.session, done.model, done.text) == ("t1", "s1", "opus", "")
    assert (done.outcome, done.stop_reason, done.usage.output_tokens, done.cost_usd) == (
        "completed",
        "end_turn",
        3,
        0.5,
    )
    assert (error.outcome, error.code, error.message) == ("failed", "interrupted", "m")
    assert (unknown.turn, unknown.outcome, unknown.text) == ("t1", None, "")


def test_a_failed_turn_has_its_code_and_a_reset_discards_the_text() -> None:
    reset = b'data: {"type":"reset","cause":"backend_broken","reason":"tool_use"}\n\n'
    failed = b'data: {"type":"error","code":"interrupted","message":"m"}\n\n'
    answer = Server(stream(START, DELTA, reset, DELTA, failed)).client().ask("Hi.")
    assert list(answer)[2] == Reset(cause="backend_broken", reason="tool_use", cursor="7")
    end = answer.done()
    assert (end.text, end.outcome, end.code, end.message) == ("Hi", "failed", "interrupted", "m")


def test_a_steered_answer_is_read_on_and_a_lost_connection_resumes_in_the_next_turn(waits: list[float]) -> None:
    """The text of the steered turn is discarded here: its own turn has it."""
    later = DELTA.replace(b"Hi", b"Ho").replace(b"id: 7", b"id: 10")
    steered = b'data: {"type":"steered","turn":"t2","outcome":"cancelled"}\nid: 8\n\n'
    server = Server(
        stream(START, DELTA, steered),
        httpx2.Response(202, json={"turn": "t2"}),
        httpx2.Response(200, headers=SSE | {"tailrace-turn": "t2"}, content=later + DONE.replace(b"id: 9", b"id: 11")),
    )
    answer = server.client().ask("Why?")
    events = iter(answer)
    assert [next(events).type for _ in range(2)] == ["start", "delta"]
    assert answer.steer("Shorter.", at="boundary") == {"turn": "t2"}
    assert [event.type for event in events] == ["steered", "delta", "done"]
    assert (answer.turn, answer.text, answer.done().turn) == ("t2", "Ho", "t2")
    shown = io.StringIO()
    show(Server(stream(START, DELTA, steered, later, DONE)).client().ask("Why?"), PlainDisplay(shown))
    assert shown.getvalue().startswith("Hi\n\nHo")
    _, steer, resumed = server.requests
    assert (steer.url.path, steer.content) == ("/v1/turns/t1/steer", b'{"message":"Shorter.","at":"boundary"}')
    assert steer.headers["idempotency-key"]
    assert (resumed.url.path, resumed.headers["last-event-id"]) == ("/v1/turns/t2/events", "8")
    assert len(waits) == 1


def test_the_text_of_blocks_that_are_open_at_the_same_time_has_their_order() -> None:
    """The CLI shows text that is out of order at the end."""
    deltas = [("b", 3), ("a", 1), ("c", 3), ("A", 1)]
    sent = [b'data: {"type":"delta","text":"%b","index":%d}\n\n' % (text.encode(), index) for text, index in deltas]
    answer = Server(stream(START, DELTA, *sent, DONE)).client().ask("Hi.")
    shown = io.StringIO()
    display = PlainDisplay(shown)
    assert show(answer, display).text == "HiaAbc"
    assert shown.getvalue() == "Hib\nHiaAbc"


def test_a_block_without_an_event_of_its_own_is_an_event() -> None:
    sent = [
        b'data: {"type":"block","index":1,"block":{"type":"compaction","content":null}}\n\n',
        b'data: {"type":"block","index":1,"delta":{"type":"newer_delta"}}\n\n',
        b'data: {"type":"citation","index":2,"citation":{"url":"u"}}\n\n',
        b'data: {"type":"event","event":{"type":"newer"}}\n\n',
    ]
    found = list(Server(stream(START, *sent, DONE)).client().ask("Hi."))[1:-1]
    assert found == [
        Block(index=1, block={"type": "compaction", "content": None}, cursor="5"),
        Block(index=1, delta={"type": "newer_delta"}, cursor="5"),
        Citation(index=2, citation={"url": "u"}, cursor="5"),
        ModelEvent(event={"type": "newer"}, cursor="5"),
    ]


def test_lists_are_read_page_by_page() -> None:
    """`next` or, in OpenAI's and Anthropic's formats, the id of the last item names the next page.

    A list of one page may lack both.
    """
    named = [{"data": [{"id": 1}], "next": "a b"}, {"data": [{"id": 2}], "next": None}]
    files = [{"data": [{"id": "f1"}], "has_more": True}, {"data": [{"id": "f2"}], "has_more": False}]
    alone = {"data": [{"name": "p"}]}
    server = Server(*(httpx2.Response(200, json=page) for page in [*named, *named, *files, *files, alone]))
    assert list(server.client().sessions()) == [{"id": 1}, {"id": 2}]
    assert list(server.client().items("/v1/turns?user=ann")) == [{"id": 1}, {"id": 2}]
    assert list(server.client().items("/v1/files", {"limit": "1"})) == [{"id": "f1"}, {"id": "f2"}]
    assert list(server.client().items("/v1/messages/batches?limit=1")) == [{"id": "f1"}, {"id": "f2"}]
    assert [str(one.url) for one in server.requests][1::2] == [
        "http://gateway/v1/sessions?after=a+b",
        "http://gateway/v1/turns?user=ann&after=a+b",
        "http://gateway/v1/files?limit=1&after=f1",
        "http://gateway/v1/messages/batches?limit=1&after_id=f1",
    ]
    assert list(server.client().items("/v1/prompts")) == [{"name": "p"}]


@pytest.mark.parametrize("page", [{}, [], {"data": None}, {"turns": 1}, "text", None])
def test_a_list_of_another_server_is_an_error(page: object) -> None:
    """Usually the URL is that of another service."""
    with pytest.raises(TailraceError, match="no list: is the URL that of Tailrace"):
        list(Server(httpx2.Response(200, json=page)).client().sessions())


@pytest.mark.parametrize("line", [b"<html>\n", b"{}\n", b"1\n", b"\xff\n"])
def test_a_line_that_is_not_a_result_is_an_error(line: bytes) -> None:
    server = Server(httpx2.Response(200, content=line))
    with pytest.raises(TailraceError, match="not a result"):
        list(server.client().results("b1"))


@pytest.mark.parametrize("cut", [b'{"index":1,"text":"\xe2\x80', b""], ids=["within a line", "before a line"])
def test_results_of_a_batch_come_once_each_over_cut_connections(cut: bytes, waits: list[float]) -> None:
    """A line may contain U+2028, which is a line break elsewhere."""
    first, second = b'{"index":0,"text":"a"}\n', '{"index":1,"text":"\u2028"}\n'.encode()
    broken = httpx2.Response(200, content=first + cut) if cut else httpx2.ReadError("cut")
    server = Server(broken, httpx2.Response(200, content=second if cut else first + second))
    assert list(server.client().results("b1")) == [{"index": 0, "text": "a"}, {"index": 1, "text": "\u2028"}]
    paths = [one.url.raw_path.decode() for one in server.requests]
    assert paths == ["/v1/turn-batches/b1/results", f"/v1/turn-batches/b1/results{'?after=0' if cut else ''}"]
    assert len(waits) == 1


def test_a_function_gives_the_headers_of_each_connection(waits: list[float]) -> None:
    tokens = iter(("old", "new"))
    server = Server(stream(START), stream(DONE))
    server.client(headers=lambda: {"authorization": f"Bearer {next(tokens)}"}).ask("Hi.").done()
    assert [one.headers["authorization"] for one in server.requests] == ["Bearer old", "Bearer new"]
    assert len(waits) == 1


def test_an_own_authorization_replaces_that_of_the_key() -> None:
    """The gateway refuses a request with two."""
    server = Server(stream(START, DONE))
    server.client(key="tr_key", headers={"Authorization": "Bearer jwt"}).ask("Hi.").done()
    assert server.requests[0].headers.get_list("authorization") == ["Bearer jwt"]


@pytest.mark.parametrize("bytes_max", ["LINE_BYTES_MAX", "ERROR_BYTES_MAX"])
def test_an_endless_line_and_an_endless_refusal_are_not_read_to_their_end(
    bytes_max: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"tailrace.client.core.{bytes_max}", 100)
    pieces = iter([b"x" * 10] * 50)
    server = Server(httpx2.Response(200 if bytes_max == "LINE_BYTES_MAX" else 500, content=pieces))
    with pytest.raises(TailraceError, match=r"a line of more than 100 bytes|answered with status 500"):
        list(server.client().results("b1"))
    assert len(list(pieces)) == 50 - 11


@pytest.mark.parametrize(
    "to",
    ["http://other/v1/turns", "//other:80/", "https://gateway/v1/turns", "http://gateway:81/", "http://u:secret@x/"],
)
def test_no_other_origin_receives_the_key_a_header_or_the_question(to: str) -> None:
    """Not with a status that repeats the POST, and not with one that makes it a GET."""
    for status in (307, 303):
        server = Server(httpx2.Response(status, headers={"location": to}), stream(START, DONE))
        with pytest.raises(TailraceError, match="the gateway redirects to http") as refusal:
            server.client(key="k", headers={"x-token": "t"}).ask("Hi.")
        assert "secret" not in str(refusal.value)
        assert len(server.requests) == 1


def test_a_redirect_within_the_origin_is_followed() -> None:
    moved = httpx2.Response(307, headers={"location": "/below/v1/turns"})
    server = Server(moved, stream(START, DONE))
    server.client(key="k").ask("Hi.").done()
    first, second = server.requests
    assert (second.url.path, second.content, second.headers) == ("/below/v1/turns", first.content, first.headers)
    with pytest.raises(TailraceError, match="redirects more than 20 times"):
        Server(*[moved] * 99).client().turn("t1")


@pytest.mark.parametrize("url", ["http://user:secret@gateway", "user:secret@gateway", "http://user:secret@[::1"])
def test_a_password_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(TailraceError, match="has a user or a password: remove it") as refusal:
        Client(url)
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize("value", ["secret\n", "sec\r\nret", "secrät", "secret ", "secret\udcff"])
def test_a_key_or_header_that_http_does_not_allow_is_refused_and_not_repeated(value: str) -> None:
    server = Server(stream(DONE))
    with pytest.raises(TailraceError, match="the API key has a line break, a space at an end, or a non-ASCII") as key:
        server.client(key=value)
    with pytest.raises(TailraceError, match="the value of the header idempotency-key has a character") as header:
        server.client().ask("Hi.", idempotency_key=value)
    assert "sec" not in str(key.value) + str(header.value)
    assert server.requests == []


@pytest.mark.parametrize("url", ["ftp://x", "gateway:8000", "http://", "http://[::1"])
def test_a_wrong_address_is_an_error_before_any_request(url: str) -> None:
    with pytest.raises(TailraceError, match="is not a URL of a gateway"):
        Client(url, http=httpx2.Client(transport=httpx2.MockTransport(Server())))


async def test_the_asynchronous_client_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAILRACE_URL", "http://gateway/below/")
    monkeypatch.setenv("TAILRACE_KEY", "from the environment")
    server = Server(stream(START, DELTA), stream(DONE))
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(server))
    async with http, AsyncClient(http=http) as client, await client.ask({"message": "Hi."}, max_tokens=5) as answer:
        assert [event.type async for event in answer] == ["start", "delta", "done"]
        assert (await answer.done()).text == answer.text == "Hi"
    post, get = server.requests
    assert (post.url.path, get.url.path) == ("/below/v1/turns", "/below/v1/turns/t1/events")
    assert post.headers["authorization"] == "Bearer from the environment"
    assert post.content == b'{"message":"Hi.","max_tokens":5}'


class HeldBody(httpx2.AsyncByteStream):
    """The body of a whole answer, whose connection cannot be closed."""

    def __init__(self) -> None:
        self.is_closing = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield START + DELTA + DONE

    async def aclose(self) -> None:
        self.is_closing.set()
        await asyncio.Event().wait()


async def test_the_end_of_an_answer_is_kept_if_its_reader_is_cancelled_while_the_connection_is_closed() -> None:
    body = HeldBody()
    server = Server(httpx2.Response(200, headers=SSE, stream=body))
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(server))
    answer = await AsyncClient("http://gateway", http=http).ask("Hi.")
    reading = asyncio.create_task(answer.done())
    await body.is_closing.wait()
    reading.cancel()
    await asyncio.wait({reading})
    assert (await answer.done()).outcome == "completed"
    assert len(server.requests) == 1
