"""The page `/ops`: which credentials see its values, and where they come from."""

import asyncio
import hashlib
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tailrace.deploy.local import ports
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import new_key
from tailrace.features.ops import sources
from tailrace.features.ops.panels import DASHBOARDS
from tailrace.gateway.http.scope import TENANT_SCOPES, ScopeName
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tailrace.proto.runtime import metrics_targets
from tests.harness import jwts
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, NewGateway

VALUES = "/ops/values"


@pytest.mark.rule("S1")
async def test_only_a_credential_with_the_scope_operate_sees_the_values(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway
) -> None:
    """A credential without scopes of its own is no operator, and an operator's key reads no turn."""
    open_gateway = await new_gateway(own_server.url, api_keys="")
    # Without any credential, every client has all scopes.
    assert (await open_gateway.client.get(VALUES, headers={"authorization": ""})).status_code == 200

    async def store(*scopes: ScopeName) -> str:
        key = new_key(Tenant("acme"), now=int(time.time()), scopes=scopes)
        await KeyStore(own_connection).create(key.record)
        return key.secret

    operator, user = await store("operate"), await store(*TENANT_SCOPES)
    without = await new_gateway(own_server.url, **jwts.settings())
    by_claim = await new_gateway(own_server.url, **jwts.settings(jwt_scopes_claim="scope"))
    logged_in = (await without.client.post("/v1/login")).json()["access_token"]
    allowed = {
        "an operator's key": (without, operator, 200),
        "a key of a tenant": (without, user, 403),
        "a key of TAILRACE_API_KEYS": (without, KEY, 403),
        "a login with such a key": (without, logged_in, 403),
        "a JWT": (without, jwts.token(scope="operate").decode(), 403),
        "a JWT with its scope": (by_claim, jwts.token(scope="operate").decode(), 200),
        "a JWT with another scope": (by_claim, jwts.token(scope="manage").decode(), 403),
        "a JWT without a scope": (by_claim, jwts.token().decode(), 403),
        "none": (without, "", 401),
    }
    found = {
        name: (await gateway.client.get(VALUES, headers={"authorization": f"Bearer {key}".strip()})).status_code
        for name, (gateway, key, _) in allowed.items()
    }
    assert found == {name: status for name, (_, _, status) in allowed.items()}
    for path in ("/v1/sessions", "/v1/usage"):
        answer = await without.client.get(path, headers={"authorization": f"Bearer {operator}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing"), path
    # A gateway that was open needs a credential from the first key on.
    await until(lambda: is_closed(open_gateway.client))


async def is_closed(client: httpx2.AsyncClient) -> bool:
    return (await client.get(VALUES, headers={"authorization": ""})).status_code == 401


async def test_the_values_name_no_tenant_and_no_prompt(own_server: NatsServer, new_gateway: NewGateway) -> None:
    """All panels are there. A gateway without targets shows its own metrics, and says how to see more."""
    gateway = await new_gateway(own_server.url, api_keys="")
    await gateway.client.post("/v1/turns", json={"message": "a-secret-prompt", "session": "a-secret-session"})

    async def values() -> httpx2.Response | None:
        answer = await gateway.client.get(VALUES)
        return answer if answer.json()["times"] else None

    answer = await until(values)
    assert answer is not None
    body = answer.json()
    assert [chart["title"] for group in body["groups"] for chart in group["charts"]] == [
        panel.title for page in DASHBOARDS for panel in page.panels
    ]
    assert (body["source"], [problem.partition(".")[0] for problem in body["problems"]]) == (
        "history",
        ["Only this gateway's own metrics are shown"],
    )
    charts = {chart["title"]: chart for group in body["groups"] for chart in group["charts"]}
    ready = charts["Processes that are ready"]
    # One process of a part is the default of `tailrace up`, and no reason for a warning.
    assert [line["values"][-1] >= ready["warning"] for line in ready["lines"]] == [True]
    assert answer.headers["cache-control"] == "no-store"
    for secret in ("a-secret", KEY, hashlib.sha256(KEY.encode()).hexdigest()):
        assert secret not in answer.text


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("ops_targets", "generators 127.0.0.1:{port} does not answer"),
        ("prometheus_url", "The Prometheus at TAILRACE_PROMETHEUS_URL gives no values: ConnectError."),
    ],
)
async def test_a_source_that_does_not_answer_is_named(
    own_server: NatsServer, new_gateway: NewGateway, setting: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the password of its URL. The page stays usable. A process is named when it has missed two samples."""
    monkeypatch.setattr(sources, "SAMPLE_EVERY_S", 1.0)
    (port,) = ports.find_free(1)
    value = f"generators=127.0.0.1:{port}" if setting == "ops_targets" else f"http://me:secret@127.0.0.1:{port}"
    gateway = await new_gateway(own_server.url, api_keys="", **{setting: value})

    async def values() -> dict[str, Any] | None:
        answer = await gateway.client.get(VALUES)
        assert "secret" not in answer.text
        body: dict[str, Any] = answer.json()
        return body if body["problems"] else None

    body = await until(values)
    assert body is not None
    assert body["problems"][0].startswith(says.format(port=port))
    if setting == "ops_targets":
        assert len(body["times"]) > 1


async def test_targets_that_do_not_answer_take_no_threads_of_requests() -> None:
    """Of a machine that is down, for example. Estimates and large bodies need the threads of the event loop."""
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(40)]
        sampled = sources.SampledProcesses({f"127.0.0.1:{one.getsockname()[1]}": "gateway" for one in silent})
        watching = asyncio.create_task(sampled.watch())
        silent[0].setblocking(False)
        connection, _ = await asyncio.get_running_loop().sock_accept(silent[0])
        stack.enter_context(connection)
        async with asyncio.timeout(sources.SCRAPE_TIMEOUT_S / 2):
            await asyncio.to_thread(time.time)
        watching.cancel()


async def test_the_processes_of_a_file_are_sampled_as_long_as_it_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tailrace up` changes it with the numbers of processes. One that has left is no problem."""
    monkeypatch.setattr(sources, "SAMPLE_EVERY_S", 0.1)
    file, (left, stayed) = tmp_path / "targets.json", [f"127.0.0.1:{port}" for port in ports.find_free(2)]
    file.write_bytes(metrics_targets.encode({left: "generators", stayed: "gateway"}))
    sampled = sources.new_source("", str(file), "")
    watching = asyncio.create_task(sampled.watch())

    async def problems() -> list[str]:
        return (await sampled.read()).problems

    advice = "does not answer: see `tailrace status`."
    gone, silent = f"generators {left} {advice}", f"gateway {stayed} {advice}"
    await until_equal(problems, [gone, silent])
    file.write_bytes(metrics_targets.encode({stayed: "gateway"}))
    await until_equal(problems, [silent])
    file.unlink()
    await asyncio.sleep(0.3)
    assert await problems() == [silent]
    watching.cancel()


async def test_a_socks_proxy_of_the_environment_is_a_problem_and_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """httpx2 has no support for it without a further package."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    (problem,) = (await sources.Prometheus("http://prometheus:9090").read()).problems
    assert problem == "The Prometheus at TAILRACE_PROMETHEUS_URL gives no values: ImportError."
