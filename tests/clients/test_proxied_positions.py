"""Values that name a thing of another user, through the proxy routes of an app with one key: what they open.

The rows are those of tests/positions.csv that the routes pass on. The apps compare what PYTHON.md names: the session in
the path or body, or that of the turn in the path.
"""

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tailrace import AsyncClient, ProxiedRequest
from tailrace.client import proxy_route
from tailrace.deploy.local.ports import find_free
from tests.clients import node
from tests.clients.test_examples import OLDER_SDKS, running_server
from tests.clients.test_proxy_route import app_of, basic_auth
from tests.harness.processes import CHECKOUT, Process
from tests.integration.conftest import Gateway
from tests.integration.test_positions import make, require_unchanged, run_rows
from tests.positions import read_table

FIELDS = {"message", "messages", "session", "create_session", "parent", "on_busy"}
# The ids of files are secrets: who has one may read it.
ROWS = [
    row
    for row in read_table()
    if any(
        route.fullmatch(f"{row.method} {row.path}".replace("{", "").replace("}", "")) for route in proxy_route.ROUTES
    )
    and not row.value.endswith("file_id")
]


@asynccontextmanager
async def through_tailrace(gateway: Gateway, _: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    async with AsyncClient(gateway.url, headers=dict(gateway.client.headers)) as client:

        async def may_use(request: ProxiedRequest) -> bool:
            user = request.headers["cookie"].removeprefix("user=")
            match request.path.split("/")[2:]:
                case ["turns"]:
                    body = request.json()
                    session, is_ours = body.get("session") or "", body.keys() <= FIELDS
                case ["turns", turn, *_]:
                    session, is_ours = (await client.turn(turn))["session"], True
                case ["sessions", session, *_]:
                    is_ours = True
                case _:
                    return True
            return is_ours and session.startswith(f"{user}:")

        async with app_of(gateway.url, may_use, has_middleware=False) as url:
            yield url, {"cookie": "user=eve"}


@asynccontextmanager
async def through_fastapi(gateway: Gateway, folder: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    (port,) = find_free(1)
    shutil.copy(CHECKOUT / "examples/fastapi_proxy.py", folder)
    command = [OLDER_SDKS, "-m", "uvicorn", "fastapi_proxy:app", "--port", str(port)]
    async with running_server(port, gateway.url, folder, *command, PYTHONPATH=str(CHECKOUT)):
        yield f"http://127.0.0.1:{port}/api/tailrace", basic_auth("eve:moneypenny")


@asynccontextmanager
async def through_edge(gateway: Gateway, folder: Path) -> AsyncIterator[tuple[str, dict[str, str]]]:
    (port,) = find_free(1)
    example = (CHECKOUT / "examples/edge_proxy.js").as_uri()
    key = gateway.client.headers["authorization"].removeprefix("Bearer ")
    command = [str(node.NODE), str(node.SCRIPTS / "edge-route.mjs"), example, gateway.url, key]
    async with running_server(port, gateway.url, folder, *command):
        yield f"http://127.0.0.1:{port}/api/tailrace", {"cookie": "user=eve"}


Through = Callable[[Gateway, Path], AbstractAsyncContextManager[tuple[str, dict[str, str]]]]


@pytest.mark.rule("R147")
@pytest.mark.rule("S21")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("through", [through_tailrace, through_fastapi, through_edge])
async def test_no_value_opens_a_thing_of_another_user_of_the_app(
    gateway: Gateway, persistence: Process, generator: Process, tmp_path: Path, through: Through
) -> None:
    project = (await gateway.client.post("/v1/projects", json={"name": "Rivers"})).json()["id"]
    ada, eve = await make(gateway.client, "ada:", project), await make(gateway.client, "eve:")
    async with through(gateway, tmp_path) as (url, headers), httpx2.AsyncClient(base_url=url, headers=headers) as http:
        own = await http.get(f"/v1/sessions/{eve.ids['session']}/turns")
        assert (own.status_code, eve.word in own.text) == (200, True)
        answers, wrong = await run_rows(http, ROWS, eve, ada)
    assert not wrong, "\n".join(wrong)
    # Cursors of ada's have passed the check of the app, and were ignored.
    assert 200 in {answer.status for row, answer in answers if row.path == "/v1/sessions/{session}/events"}
    await require_unchanged(gateway.client, ada)
