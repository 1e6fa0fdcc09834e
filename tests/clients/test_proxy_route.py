"""tailrace.proxy in Starlette: whose requests pass, and streams, cursors and cuts, which pass as they are."""

import asyncio
import base64
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

import tailrace
from tailrace import AsyncClient, ProxiedRequest
from tailrace.deploy.local.ports import find_free
from tailrace.proto.ids import new_id
from tests.clients.conftest import count_turns
from tests.clients.test_examples import OLDER_SDKS, running_server
from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway

LINE = "#sim words=200 rate=400"


async def add_nothing(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """A middleware of the kind that hides how a response ends."""
    return await call_next(request)


@asynccontextmanager
async def app_of(url: str, may_use: Any = None, *, has_middleware: bool = True) -> AsyncIterator[str]:
    """Runs an app with the route, and returns the URL of the route."""
    async with httpx2.AsyncClient(trust_env=False) as http:
        route = tailrace.proxy(url, KEY, may_use=may_use or (lambda _: True), http=http)
        middleware = [Middleware(BaseHTTPMiddleware, dispatch=add_nothing)] if has_middleware else []
        app = Starlette(routes=[Mount("/api/tailrace", app=route)], middleware=middleware)
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        serving = asyncio.create_task(server.serve([listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/api/tailrace"
        finally:
            server.should_exit = True
            await serving


async def read_into(received: bytearray, response: httpx2.Response) -> None:
    async for part in response.aiter_raw():
        received += part


async def test_an_answer_is_read_through_the_route(gateway: Gateway) -> None:
    """With the user's login; the key of the app is not sent by the page."""
    seen: list[ProxiedRequest] = []

    async def may_use(request: ProxiedRequest) -> bool:
        seen.append(request)
        return request.headers.get("cookie") == "user=ada"

    async with app_of(gateway.url, may_use) as url:
        async with AsyncClient(url, headers={"cookie": "user=ada"}) as client:
            answer = await client.ask(LINE, session="ada:1", create_session=True)
            assert (await answer.done()).text == words(200)
            assert [turn["text"] async for turn in client.turns("ada:1")] == [words(200)]
        async with AsyncClient(url, headers={"cookie": "user=eve"}) as client:
            with pytest.raises(tailrace.TailraceError) as raised:
                await client.ask(LINE, session="ada:1")
    assert raised.value.status == 404
    assert seen[0].json()["session"] == "ada:1"
    assert [(one.method, one.path) for one in seen[:2]] == [("POST", "/v1/turns"), ("GET", "/v1/sessions/ada:1/turns")]
    assert await count_turns(gateway) == 1


async def test_a_file_of_a_question_passes_and_is_read_for_another_answer(gateway: Gateway) -> None:
    """The record of a turn has a long part of its question as a blob."""
    async with app_of(gateway.url) as url, httpx2.AsyncClient(base_url=url) as http:
        file = ("river.txt", b"A river. " * 10_000, "text/plain")
        made = await http.post("/v1/files", data={"purpose": "user_data"}, files={"file": file})
        block = {"type": "document", "source": {"type": "file", "file_id": made.json()["id"]}}
        content = [block, {"type": "text", "text": LINE}]
        turn = (await http.post("/v1/turns", json={"messages": [{"role": "user", "content": content}]})).json()["turn"]
        record = (await http.get(f"/v1/turns/{turn}")).json()
        sha256 = record["input"][0]["content"][0]["source"]["data"]["tailrace:blob"]
        assert (await http.get(f"/v1/blobs/{sha256}")).content == file[1]


@pytest.mark.parametrize("has_middleware", [True, False])
async def test_a_cut_upstream_is_a_cut_downstream_and_the_cursor_passes(
    gateway: Gateway, *, has_middleware: bool
) -> None:
    """Never a clean end, which a page would take for the end of the answer."""
    async with (
        Cutting(gateway.port, [Cut(1_800)]) as proxy,
        app_of(proxy.url, has_middleware=has_middleware) as url,
        httpx2.AsyncClient() as http,
    ):
        headers = {"accept": "text/event-stream"}
        received = bytearray()
        async with http.stream("POST", f"{url}/v1/turns", json={"message": LINE}, headers=headers) as response:
            with pytest.raises(httpx2.RemoteProtocolError):
                await read_into(received, response)
        turn, cursor = response.headers["tailrace-turn"], received.rpartition(b"\nid: ")[2].split(b"\n")[0]
        path = f"/v1/turns/{turn}/events"
        rest = await http.get(url + path, headers={"last-event-id": cursor.decode()})
        expected = await gateway.client.get(path, headers={"last-event-id": cursor.decode()})
        by_query = await http.get(f"{url}{path}?after={cursor.decode()}")
        # Behind the `retry:` line, whose time is random.
        bodies = {one.content.partition(b"\n\n")[2] for one in (rest, expected, by_query)}
        assert (len(bodies), len(bodies.pop()) > 300) == (1, True)
        last = rest.content.rpartition(b"\nid: ")[2].split(b"\n")[0].decode()
        assert (await http.get(url + path, headers={"last-event-id": last})).status_code == 204
    # A client that resumes sees the whole answer.
    async with (
        Cutting(gateway.port, [Cut(1_800)]) as proxy,
        app_of(proxy.url, has_middleware=has_middleware) as url,
        AsyncClient(url) as client,
    ):
        assert (await (await client.ask(LINE)).done()).text == words(200)
        assert proxy.left == []


async def test_the_gateway_sees_when_the_reader_leaves(gateway: Gateway) -> None:
    async with app_of(gateway.url) as url, AsyncClient(url) as client:
        answer = await client.ask("#sim words=4000 rate=50", on_disconnect="cancel")
        async with answer:
            await anext(aiter(answer))

        async def is_cancelled() -> bool:
            return bool((await gateway.client.get(f"/v1/turns/{answer.turn}")).json()["outcome"] == "cancelled")

        await until(is_cancelled)


def forbid(_: ProxiedRequest) -> bool:
    raise PermissionError("not your chat")


def fail(_: ProxiedRequest) -> bool:
    raise KeyError("user")


def log_out(_: ProxiedRequest) -> bool:
    raise HTTPException(401, "log in")


@pytest.mark.parametrize(
    ("may_use", "status", "text"),
    [
        (forbid, 403, "not your chat"),
        (fail, 500, "nothing was sent on"),
        (log_out, 401, "log in"),
        (lambda _: False, 404, "not found"),
        # A forgotten `await`, or a user instead of a decision, lets nothing pass.
        (lambda _: "ada", 404, "not found"),
    ],
    ids=["PermissionError", "another error", "HTTPException", "False", "not a bool"],
)
async def test_a_request_that_may_not_pass_is_not_sent_on(
    gateway: Gateway, may_use: Any, status: int, text: str
) -> None:
    async with app_of(gateway.url, may_use) as url, httpx2.AsyncClient() as http:
        response = await http.post(f"{url}/v1/turns", json={"message": LINE})
    assert (response.status_code, text in response.text) == (status, True)
    assert await count_turns(gateway) == 0


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/turns", "/v1/keys", "/v1/turns/../keys", "/v1/sessions/../turns", "/v1/sessions/%2e%2e/turns"),
        *("/v1/usage", "/v1/files", "/v1/blobs/../files"),
    ],
)
async def test_other_routes_are_not_passed_on(gateway: Gateway, path: str) -> None:
    """A list of turns would have all users' turns."""
    host, port = "127.0.0.1", 0
    async with app_of(gateway.url) as url:
        port = int(url.split(":")[2].split("/")[0])
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET /api/tailrace{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        assert b" 404 " in (await reader.readline())
        writer.close()
        await writer.wait_closed()


async def test_a_gateway_that_is_away_is_a_502() -> None:
    async with app_of("http://127.0.0.1:9") as url, httpx2.AsyncClient() as http:
        response = await http.get(f"{url}/v1/turns/t1")
    assert (response.status_code, response.json()["error"]["code"]) == (502, "gateway_unreachable")


async def test_the_example_on_fastapi_passes_its_users_requests_on(gateway: Gateway, tmp_path: Path) -> None:
    """With the packages of an app, and the client of the checkout."""
    (port,) = find_free(1)
    shutil.copy(CHECKOUT / "examples/fastapi_proxy.py", tmp_path)
    command = [OLDER_SDKS, "-m", "uvicorn", "fastapi_proxy:app", "--port", str(port)]
    url, ada = f"http://127.0.0.1:{port}/api/tailrace", basic_auth("ada:lovelace")
    async with running_server(port, gateway.url, tmp_path, *command, PYTHONPATH=str(CHECKOUT)):
        async with AsyncClient(url, headers=ada) as client:
            answer = await client.ask(LINE, session="ada:1", create_session=True)
            assert (await answer.done()).text == words(200)
            assert (await client.turn(answer.turn))["text"] == words(200)
            assert [turn["turn"] async for turn in client.turns("ada:1")] == [answer.turn]
        async with httpx2.AsyncClient(base_url=url) as http:
            statuses = [
                (await http.get(f"/v1/turns/{answer.turn}", headers=basic_auth("eve:moneypenny"))).status_code,
                (await http.get("/v1/sessions/ada:1/turns", headers=basic_auth("eve:moneypenny"))).status_code,
                (await http.get(f"/v1/turns/{new_id()}", headers=ada)).status_code,
                (await http.post("/v1/turns", json={"message": LINE, "session": "eve:1"}, headers=ada)).status_code,
                (await http.get(f"/v1/turns/{answer.turn}")).status_code,
            ]
    assert statuses == [404, 404, 404, 404, 401]
    assert await count_turns(gateway) == 1


def basic_auth(user: str) -> dict[str, str]:
    return {"authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
