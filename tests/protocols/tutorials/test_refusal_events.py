"""Refusals as server-sent events: for which requests, and what stays of the response."""

from types import SimpleNamespace

import httpx2
import msgspec
import pytest
from starlette.types import Receive, Scope, Send

from tailrace.features.gateway import ROUTES
from tailrace.gateway.http import error_responses
from tests.harness.refusals import problem_of
from tests.integration.conftest import Gateway, on_shared_loop

PATH = "/chat/stream"
RENDERERS = {route.path: route.render_refusal for route in ROUTES if route.render_refusal is not None}
APP = SimpleNamespace(state=SimpleNamespace(refusal_renderers=RENDERERS))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    # As Starlette does, before the first middleware.
    scope["app"] = APP
    refusal = error_responses.response("server_busy", "Retry later: ü.", retry_after_s=6.2, headers={"x-more": "1"})
    await refusal(scope, receive, send)


async def ask(method: str, path: str, **headers: str) -> httpx2.Response:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, path, headers={name.replace("_", "-"): headers[name] for name in headers})


@pytest.mark.parametrize("accept", ["*/*", "text/event-stream", "text/event-stream, Application/JSON"])
async def test_a_refusal_is_an_event_with_status_and_headers(accept: str) -> None:
    answer = await ask("POST", PATH, accept=accept)
    kept = {name: answer.headers[name] for name in ("retry-after", "cache-control", "x-more", "content-type")}
    assert (answer.status_code, kept) == (
        503,
        {"retry-after": "7", "cache-control": "no-store", "x-more": "1", "content-type": "text/event-stream"},
    )
    assert int(answer.headers["content-length"]) == len(answer.content)
    event = msgspec.json.decode(answer.content.removeprefix(b"data: "))
    assert (event["error"], event["retry_after"]) == ("network_error", 7)
    assert problem_of(answer.content).message == "Retry later: ü."


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", PATH, {"accept": "application/json, text/plain, */*"}),
        ("POST", PATH, {"accept": "text/event-stream", "last_event_id": "5"}),
        ("GET", PATH, {}),
        ("POST", "/ai/chat", {}),
    ],
)
async def test_a_client_that_can_use_it_gets_the_envelope(method: str, path: str, headers: dict[str, str]) -> None:
    """fetch-event-source repeats a request that resumes only after a response that is no event stream."""
    answer = await ask(method, path, **headers)
    assert (answer.status_code, answer.headers["content-type"]) == (503, "application/json")
    assert answer.json()["error"]["code"] == "server_busy"


@on_shared_loop
@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [({"host": "a b"}, b"{}", 403), ({"authorization": "Bearer none"}, b"{}", 401), ({}, b"{", 400)],
    ids=["middleware", "authentication", "endpoint"],
)
async def test_each_layer_of_the_gateway_refuses_with_an_event(
    shared_gateway: Gateway, headers: dict[str, str], body: bytes, status: int
) -> None:
    accepted = {"accept": "text/event-stream", "content-type": "application/json"}
    answer = await shared_gateway.client.post(PATH, content=body, headers=accepted | headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/event-stream")
    assert msgspec.json.decode(answer.content.removeprefix(b"data: "))["error"]
