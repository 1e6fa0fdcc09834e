"""Separation of tenants, and access without a key, on every route."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import new_key
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Connection
from tests.harness.forks import run_module
from tests.harness.processes import Process
from tests.harness.refusals import problem_of
from tests.harness.route_table import BATCH, LONG_MESSAGE, MESSAGE_BATCH, ROWS, path_parameters
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway, api_keys

OTHER_KEY = "the-key-of-another-tenant"
UNKNOWN = (new_id(), new_id(), new_id())
LINE = "#sim words=3 rate=0"
CHAT_BODY = {"messages": [{"role": "user", "content": LINE}]}
UI_MESSAGE = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": LINE}]}


@pytest.fixture
async def two_tenants(
    system: System, generator: Process, persistence: Process, new_gateway: NewGateway, tenant: Tenant
) -> Gateway:
    """A gateway with keys of two tenants; its own client has the first one."""
    other = f"tenant-{new_id()}:{hashlib.sha256(OTHER_KEY.encode()).hexdigest()}"
    return await new_gateway(system.nats_url, api_keys=f"{api_keys(tenant)}, {other}")


@pytest.fixture
async def other_client(two_tenants: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the other tenant."""
    async with two_tenants.new_client() as client:
        client.headers["authorization"] = f"Bearer {OTHER_KEY}"
        yield client


async def create(client: httpx2.AsyncClient, project: str | None = None) -> dict[str, str]:
    """Creates a thing of each kind. Returns their ids, by the names of path parameters."""
    body = {"message": LONG_MESSAGE, "project": project}
    accepted = (await client.post("/v1/turns", json=body)).json()
    await client.get(accepted["links"]["events"])
    calling = {"message": f"{LINE} tool=look", "tools": [{"name": "look", "input_schema": {}}]}
    calling["session"] = accepted["session"]
    called = (await client.post("/v1/turns", json=calling)).json()
    await client.get(called["links"]["events"])
    waiting = (await client.get(f"/v1/sessions/{called['session']}/calls")).json()["calls"]
    batch = (await client.post("/v1/turn-batches", json=BATCH)).json()
    await client.get(batch["links"]["events"])
    line = {"custom_id": "one", "url": "/v1/responses", "body": {"input": LINE}}
    upload = {"file": ("a.jsonl", msgspec.json.encode(line))}
    file = (await client.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
    new = {"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h"}
    made = (await client.post("/v1/batches", json=new)).json()["id"]
    messages = (await client.post("/v1/messages/batches", json=MESSAGE_BATCH)).json()["id"]
    await client.get(f"/v1/turns/{messages.removeprefix('msgbatch_')}/events")
    ids = (accepted["turn"], accepted["session"], project or "none", batch["batch"], file, made, messages)
    return path_parameters(*ids, waiting[0]["call"])


@pytest.mark.rule("S1")
@pytest.mark.rule("R78")
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/turns", {"message": LINE}),
        ("/chat/stream", {"message": LINE}),
        ("/ai/chat", CHAT_BODY),
        ("/v1/messages", CHAT_BODY | {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": True}),
        ("/api/chat", {"id": "chat", "messages": [UI_MESSAGE]}),
    ],
)
async def test_a_post_with_a_cursor_continues_its_own_turn_only(
    two_tenants: Gateway, other_client: httpx2.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """Otherwise it is refused with 400, for another tenant as for an id that does not exist; it never starts a turn."""
    stream = {"accept": "text/event-stream"}
    first = await two_tenants.client.post(path, json=body, headers=stream)
    events = parse(first.content)
    ids = [event.id for event in events if event.id is not None]

    async def post(client: httpx2.AsyncClient, last: object, sent: dict[str, Any]) -> httpx2.Response:
        return await client.post(path, json=sent, headers=stream | {"last-event-id": str(last)})

    for last in (ids[0], ids[-1]):
        rest = (await post(two_tenants.client, last, body)).content
        after = [event.id for event in events].index(last) + 1
        assert [event.raw for event in parse(rest)] == [event.raw for event in events[after:]]
    other_body = msgspec.json.decode(msgspec.json.encode(body).replace(b"words=3", b"words=4"))
    refused = [
        await post(other_client, ids[0], body),
        await post(other_client, 999_999_999, body),
        await post(two_tenants.client, ids[0], other_body),
        await post(two_tenants.client, "none", body),
    ]
    assert [answer.status_code for answer in refused] == [400] * 4
    assert {answer.json()["error"]["code"] for answer in refused} == {"cursor_mismatch"}
    assert refused[0].text == refused[1].text.replace("999999999", str(ids[0]))
    for client, count in ((two_tenants.client, 1), (other_client, 0)):
        assert sum(one["turns"] for one in (await client.get("/v1/usage")).json()["data"]) == count


@pytest.mark.rule("S1")
async def test_objects_of_another_tenant_are_404_on_every_route(
    two_tenants: Gateway, other_client: httpx2.AsyncClient
) -> None:
    """Byte for byte the response for an unknown id, so that its existence is not disclosed."""
    mine = await create(two_tenants.client, new_id())
    for (method, path), row in ROWS.items():
        if row.names and not row.is_everybodys:
            there = await create(two_tenants.client, new_id()) if method == "DELETE" else mine
            theirs = await other_client.request(method, path.format(**there) + row.query, json=row.body)
            unknown = await other_client.request(
                method, path.format(**path_parameters(*UNKNOWN)) + row.query, json=row.body
            )
            allowed = "HEAD" if row.is_endless else method
            own = await two_tenants.client.request(allowed, path.format(**there) + row.query, json=row.body)
            # This request comes last: the request of the other tenant has changed nothing.
            assert own.is_success, path
            assert (theirs.status_code, theirs.content) == (404, unknown.content), path
            assert {*theirs.headers.items()} - {*unknown.headers.items()} <= {("date", theirs.headers["date"])}
    for name in ("session", "parent"):
        body = {"message": "and?", name: mine["turn" if name == "parent" else name]}
        follow_up = await other_client.post("/v1/turns", json=body)
        assert (follow_up.status_code, follow_up.json()["error"]["code"]) == (404, f"{name}_not_found")
    stolen = {"input_file_id": mine["file_id"], "endpoint": "/v1/responses", "completion_window": "24h"}
    answer = await other_client.post("/v1/batches", json=stolen)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    block = {"type": "document", "source": {"type": "file", "file_id": mine["file_id"]}}
    answer = await other_client.post("/v1/turns", json={"messages": [{"role": "user", "content": [block]}]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "file_not_found")
    run = await other_client.get("/api/agui", params={"runId": mine["turn"]})
    assert (run.status_code, run.json()["error"]["code"]) == (404, "turn_not_found")
    thread = await other_client.get("/api/agui", params={"threadId": mine["session"]})
    assert thread.json() == {"messages": [], "activeRun": None, "interrupts": None}
    for path in ("/v1/sessions", "/v1/projects", "/v1/usage", "/v1/files", "/v1/batches", "/v1/messages/batches"):
        assert (await other_client.get(path)).json()["data"] == [], path


@pytest.mark.rule("S7")
async def test_without_keys_a_page_of_another_origin_is_refused(system: System, new_gateway: NewGateway) -> None:
    """A browser sends a POST without JSON for any page and without a preflight; a cancel is such a POST."""
    gateway = await new_gateway(system.nats_url, api_keys="")
    posts = [path.format(**path_parameters(*UNKNOWN)) for method, path in ROWS if method == "POST"]
    async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        for path in posts:
            for origin in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
                answer = await client.post(path, headers=origin)
                assert (answer.status_code, problem_of(answer.content).code) == (403, "origin_refused"), path
    assert {path for path in posts if path.endswith(("/cancel", "/stop"))} != set()


async def test_beyond_loopback_the_check_of_a_gateway_without_keys_fails(
    own_server: NatsServer, own_connection: Connection
) -> None:
    """Status 2 and a message that says what to do. A start waits for the first key: test_waiting.py."""
    environ = {"TAILRACE_HOST": "0.0.0.0", "TAILRACE_PORT": "0", "TAILRACE_NATS_URL": own_server.url}
    status, out, sentence = await run_module("tailrace.gateway", "--check", **environ)
    assert (status, out) == (2, "")
    assert sentence.startswith("gateway: TAILRACE_HOST: 0.0.0.0 is reachable from other machines")
    assert "tailrace keys create" in sentence
    await KeyStore(own_connection).create(new_key(Tenant("alice"), now=1, scopes=SCOPES).record)
    assert (await run_module("tailrace.gateway", "--check", **environ)).status == 0
