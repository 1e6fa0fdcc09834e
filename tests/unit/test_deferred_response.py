"""A deferred response is sent when the layers around its endpoint have returned."""

from collections.abc import Awaitable, Callable

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.http.deferred_response import StreamedResponse, send_deferred
from tailrace.gateway.http.error_responses import response as error_response
from tailrace.proto.errors import Refused

Respond = Callable[[StreamedResponse, Send], Awaitable[None]]


class Layer:
    """Middleware that notes the messages that pass it, and adds a header."""

    def __init__(self, app: ASGIApp, seen: list[str]) -> None:
        self._app = app
        self._seen = seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_noted(message: Message) -> None:
            self._seen.append(message["type"].removeprefix("http.response."))
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-layer", b"1")]
            await send(message)

        await self._app(scope, receive, send_noted)
        self._seen.append("returned")


class DeferredResponse(StreamedResponse):
    """A response that calls `respond`."""

    def __init__(self, respond: Respond) -> None:
        super().__init__({})
        self._call = respond

    async def respond(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await self._call(self, send)


def client(respond: Respond, seen: list[str]) -> TestClient:
    """Returns a client of an application whose only route defers `respond`."""

    async def endpoint(_: object) -> ASGIApp:
        response = DeferredResponse(respond)
        response.add_headers({"x-turn": "t"})
        return response

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(Layer, seen=seen)])
    return TestClient(send_deferred(app), raise_server_exceptions=False)


def test_the_layers_return_first_and_see_only_how_a_success_begins() -> None:
    seen: list[str] = []

    async def respond(response: StreamedResponse, send: Send) -> None:
        seen.append("sending")
        await response.begin(send, 200)
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    answer = client(respond, seen).get("/")
    assert (answer.status_code, answer.text, answer.headers["x-layer"]) == (200, "ab", "1")
    assert seen == ["tailrace.response.deferred", "returned", "sending", "start"]


def test_a_whole_response_of_json_has_its_length_and_passes_the_layers_only_with_its_start() -> None:
    seen: list[str] = []

    async def respond(response: StreamedResponse, send: Send) -> None:
        await response.send_json(send, b'{"a":1}')

    answer = client(respond, seen).get("/")
    assert (answer.status_code, answer.json(), answer.headers["x-turn"]) == (200, {"a": 1}, "t")
    assert (answer.headers["content-type"], answer.headers["content-length"]) == ("application/json", "7")
    assert seen == ["tailrace.response.deferred", "returned", "start"]


def test_the_layers_see_an_error_whole() -> None:
    """A layer may replace the body of an error."""
    seen: list[str] = []

    async def respond(_response: StreamedResponse, _send: Send) -> None:
        raise Refused("turn_not_found", "no such turn")

    answer = client(respond, seen).get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "turn_not_found")
    assert seen == ["tailrace.response.deferred", "returned", "start", "body"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(Refused("turn_not_found", "no such turn"), 404, "turn_not_found"), (KeyError("x"), 500, "internal")],
    ids=["refusal", "unexpected"],
)
def test_an_error_before_the_beginning_has_its_status_and_the_headers_of_the_response(
    error: Exception, status: int, code: str
) -> None:
    async def respond(_response: StreamedResponse, _send: Send) -> None:
        raise error

    answer = client(respond, []).get("/")
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert (answer.headers["x-layer"], answer.headers["x-turn"]) == ("1", "t")


@pytest.mark.parametrize("status", [200, 204])
def test_an_error_after_the_beginning_cuts_the_body_and_begins_no_second_response(status: int) -> None:
    """The server logs it."""
    seen: list[str] = []

    async def respond(response: StreamedResponse, send: Send) -> None:
        await response.begin(send, status)
        raise KeyError("x")

    with pytest.raises(KeyError):
        TestClient(client(respond, seen).app).get("/")
    assert seen == ["tailrace.response.deferred", "returned", "start"]


def test_a_response_that_is_not_deferred_passes_the_layers() -> None:
    seen: list[str] = []

    async def endpoint(_: object) -> ASGIApp:
        return error_response("turn_not_found", "no such turn")

    app = Starlette(routes=[Route("/", endpoint)], middleware=[Middleware(Layer, seen=seen)])
    assert TestClient(send_deferred(app)).get("/").status_code == 404
    assert seen == ["start", "body", "returned"]
