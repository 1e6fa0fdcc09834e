"""Private users: what a user of a tenant can do with the things of another one, on every route.

tests/private_users.csv says it of each route, and is a table in docs/AUTH.md. A route without a row fails here.
"""

import asyncio
import csv
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest
import pytest_asyncio

from tailrace.features.admin.key_store import KeyStore
from tailrace.proto.ids import Tenant, new_id
from tailrace.proto.nats import Connection
from tailrace.proto.ownership import Users
from tests.features.responses_socket.test_responses_socket import raw, read_error
from tests.harness import jwts
from tests.harness.processes import Process
from tests.harness.route_table import LONG_SHA256, ROWS, path_parameters
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway
from tests.integration.test_tenants import create

TABLE = Path(__file__).parents[1] / "private_users.csv"
LINE = "#sim words=3 rate=0"
LONG_ANSWER = "#sim words=2000 rate=20"
QUESTION = [{"role": "user", "content": LINE}]
UNKNOWN = (new_id(), new_id(), new_id())
HIDDEN, OWN, REFUSED, ALL, SAME = "`404`", "only its own", "`403`", "everything of the tenant", "the same"
Ids = dict[str, str]
Json = dict[str, Any]


class Case(NamedTuple):
    """A route, and what other users can do there with the things of a user."""

    topic: str
    method: str
    path: str
    private: str
    shared: str
    tenant: str


def read_table() -> list[Case]:
    with TABLE.open(newline="") as file:
        _, *lines = csv.reader(file)
    return [Case(topic, *route.strip("`").split(" "), *results) for topic, route, *results in lines]


CASES = read_table()


def document(ids: Ids) -> Json:
    return {"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": ids["file_id"]}}]}


def message(ids: Ids) -> Json:
    return {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [document(ids)]}


def run_of(ids: Ids, **more: Any) -> Json:
    asked = [{"id": "1", "role": "user", "content": LINE}]
    return {"threadId": ids["session"], "runId": new_id(), "messages": asked, **more}


def responded(ids: Ids, **more: Any) -> Json:
    return {"model": "claude-haiku-5-5", "input": LINE, **more}


def ui_message(ids: Ids) -> Json:
    return {"id": ids["session"], "messages": [{"id": "u", "role": "user", "parts": [{"type": "text", "text": LINE}]}]}


RESULT = {"type": "tool_result", "tool_use_id": "call", "content": "forged"}
# The bodies with which a user can name things of another one, by route. The last value: headers.
NAMING: dict[str, list[Callable[[Ids], tuple[Json, dict[str, str]]]]] = {
    "/v1/turns": [
        lambda ids: ({"message": LINE, "session": ids["session"]}, {}),
        lambda ids: ({"message": LINE, "session": ids["session"], "create_session": True}, {}),
        lambda ids: ({"message": LINE, "session": ids["session"], "parent": None}, {}),
        lambda ids: ({"message": LINE, "session": ids["session"], "parent": None, "create_session": True}, {}),
        lambda ids: ({"message": LINE, "session": ids["session"], "on_busy": "interrupt"}, {}),
        lambda ids: ({"message": LINE, "session": ids["session"], "on_busy": "queue"}, {}),
        lambda ids: ({"message": LINE, "session": ids["session"], "on_busy": "branch"}, {}),
        lambda ids: ({"message": LINE, "parent": ids["turn"]}, {}),
        lambda ids: ({"message": LINE, "parent": ids["turn"], "on_busy": "interrupt"}, {}),
        lambda ids: ({"messages": QUESTION, "session": ids["session"], "full_history": True}, {}),
        lambda ids: ({"messages": [{"role": "user", "content": [RESULT]}], "session": ids["session"]}, {}),
        lambda ids: ({"messages": [document(ids)]}, {}),
        lambda ids: ({"message": LINE, "project": ids["project"]}, {}),
    ],
    "/v1/messages": [
        lambda ids: (message(ids) | {"messages": QUESTION}, {"x-session-id": ids["session"]}),
        lambda ids: (message(ids), {}),
    ],
    "/v1/chat/completions": [
        lambda ids: ({"model": "claude-haiku-5-5", "messages": QUESTION, "session_id": ids["session"]}, {}),
        lambda ids: ({"model": "claude-haiku-5-5", "messages": QUESTION}, {"x-session-id": ids["session"]}),
    ],
    "/v1/responses": [
        lambda ids: (responded(ids, previous_response_id=ids["response_id"]), {}),
        lambda ids: (responded(ids, conversation=ids["session"]), {}),
        lambda ids: ({"input": LINE, "session_id": ids["session"]}, {}),
        lambda ids: (responded(ids, input=[{"type": "item_reference", "id": f"msg_{ids['turn']}_0"}]), {}),
    ],
    "/api/chat": [lambda ids: (ui_message(ids), {})],
    "/api/agui": [lambda ids: (run_of(ids), {})],
    "/api/copilotkit/agent/{agent}/run": [lambda ids: (run_of(ids), {})],
    "/v1/turn-batches": [
        lambda ids: ({"requests": [{"custom_id": "one", "params": {"messages": [document(ids)]}}]}, {})
    ],
    "/v1/batches": [
        lambda ids: (
            {"input_file_id": ids["file_id"], "endpoint": "/v1/responses", "completion_window": "24h"},
            {},
        )
    ],
    # Bodies that name nothing: the page's cookie names a conversation, and cannot be guessed.
    "/v1/files": [],
    "/v1/sessions": [],
    "/v1/messages/batches": [],
    "/api/copilotkit/agent/{agent}/connect": [],
    "/chat": [],
    "/chat/stream": [],
    "/ai/chat": [],
    "/api/start-job": [],
    "/api/process": [],
}


class People(NamedTuple):
    """Clients of one tenant: two users, and an API key without a user; and a user of another tenant."""

    ann: httpx2.AsyncClient
    bob: httpx2.AsyncClient
    company: httpx2.AsyncClient
    stranger: httpx2.AsyncClient
    tenant: Tenant
    gateway: Gateway
    keys: KeyStore

    async def set_users(self, users: Users) -> None:
        """Changes the setting, and waits until the gateway applies it: the company's own routes do not change."""
        await self.keys.set_users(self.tenant, users)
        no_user = {"authorization": f"Bearer {token(self.tenant, None)}"}
        expected = 401 if users == "private" else 200

        async def status() -> int:
            return (await self.bob.get("/v1/models", headers=no_user)).status_code

        await until_equal(status, expected)


def token(tenant: str, user: str | None, **more: Any) -> str:
    return jwts.token(**{"org": tenant, "sub": user, "scopes": "read write manage", **more}).decode()


@pytest_asyncio.fixture
async def people(
    system: System, generator: Process, persistence: Process, new_gateway: NewGateway, tenant: Tenant
) -> AsyncIterator[People]:
    gateway = await new_gateway(
        system.nats_url, **jwts.settings(jwt_tenant_claim="org", jwt_scopes_claim="scopes"), heartbeat_s=0.5
    )
    async with AsyncExitStack() as stack:
        connection = await Connection.open(system.nats_url, "test-admin")
        stack.push_async_callback(connection.close)
        keys = KeyStore(connection)

        async def client(bearer: str) -> httpx2.AsyncClient:
            made = await stack.enter_async_context(gateway.new_client())
            made.headers["authorization"] = f"Bearer {bearer}"
            return made

        yield People(
            await client(token(tenant, "ann")),
            await client(token(tenant, "bob")),
            await client(KEY),
            await client(token(f"other-{tenant}", "bob")),
            tenant,
            gateway,
            keys,
        )
        await keys.set_users(tenant, "shared")


async def end(client: httpx2.AsyncClient, body: Json) -> Json:
    """Posts a turn, and waits for its end. Returns what was accepted."""
    answer = await client.post("/v1/turns", json=body)
    assert answer.status_code == 202, answer.text
    await client.get(answer.json()["links"]["events"])
    return dict(answer.json())


async def request(client: httpx2.AsyncClient, case: Case, ids: Ids, method: str = "") -> httpx2.Response:
    row = ROWS[case.method, case.path]
    return await client.request(method or case.method, case.path.format(**ids) + row.query, json=row.body)


def test_each_route_has_a_row() -> None:
    """Operators' routes are about all tenants, and their keys have no user."""
    routes = {
        (method, path)
        for (method, path), row in ROWS.items()
        if not row.is_public and not path.startswith("/v1/admin/")
    }
    assert {(case.method, case.path) for case in CASES} == routes
    assert len(CASES) == len(routes)
    assert {case.path for case in CASES if case.topic == "Ids in the body"} == NAMING.keys()


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
@pytest.mark.timeout(180)
async def test_things_of_another_private_user_are_unknown_on_every_route(people: People) -> None:
    """Byte for byte the response for an unknown id, for a user of the tenant as for one of another tenant."""
    await people.set_users("private")
    mine = await create(people.ann)
    # Projects are the tenant's.
    project = (await people.company.post("/v1/projects", json={"name": "Rivers"})).json()["id"]
    for case in CASES:
        row = ROWS[case.method, case.path]
        if case.private == HIDDEN:
            there = await create(people.ann) if case.method == "DELETE" else mine
            owner = people.ann
            if "{project}" in case.path:
                there, owner = there | {"project": project}, people.company
            unknown = await request(people.bob, case, path_parameters(*UNKNOWN))
            for client in (people.bob, people.stranger):
                theirs = await request(client, case, there)
                assert (theirs.status_code, theirs.content) == (404, unknown.content), case
            own = await request(owner, case, there, "HEAD" if row.is_endless else "")
            # This request comes last: the others have changed nothing.
            assert own.is_success, (case, own.text)
        elif case.private == REFUSED:
            refused = await request(people.bob, case, mine)
            query = f"?confirm={people.tenant}" if case.path == "/v1/tenant" else row.query
            refused = await people.bob.request(case.method, f"{case.path}{query}", json=row.body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "users_private"), case
        elif case.topic == "Lists and sums":
            found = await request(people.bob, case, mine)
            assert found.status_code in (200, 204), (case, found.text)
            shown = [
                name for name, value in mine.items() if name != "agent" and value in found.text and len(value) > 20
            ]
            assert shown == [], (case, found.text)
    assert (await people.bob.get("/v1/usage")).json()["total"]["turns"] == 0
    stats = (await people.bob.get("/v1/sessions/stats")).json()
    assert (stats["session_stats"]["active_sessions"], stats["by_model"]) == (0, [])
    assert (await people.ann.get("/v1/usage?by=user")).json()["data"][0]["key"] == "ann"
    # No filter and no pair opens more. Ann and the tenant see Ann's turns.
    session, today = mine["session"], f"{datetime.now(UTC):%Y-%m-%d}"
    for query in ("by=user,model", "by=model&user=ann", f"by=user,session&session={session}", "by=day&user=ann"):
        for client, is_shown in ((people.ann, True), (people.company, True), (people.bob, False)):
            found = (await client.get(f"/v1/usage?{query}")).json()
            assert (bool(found["data"]), found["total"]["turns"] > 0) == (is_shown, is_shown), (query, found)
            table = (await client.get(f"/v1/usage?{query}&format=csv")).text
            assert len(table.splitlines()) == 1 + len(found["data"]), (query, table)
            assert not (client is people.bob and ("ann" in table or session in table))
    for query in ("", "&user=ann"):
        path = f"/v1/turns?order=-cost_usd&from={today}{query}"
        assert (await people.bob.get(path)).json()["data"] == []
        assert mine["turn"] in (await people.ann.get(path)).text
    for client, count in ((people.ann, 1), (people.company, 1), (people.bob, 0)):
        found = (await client.get("/v1/turns", params={"q": "look"})).json()["data"]
        assert (len(found) > 0) == bool(count)


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
@pytest.mark.timeout(180)
async def test_a_body_that_names_a_thing_of_another_private_user_names_nothing(people: People) -> None:
    """Also with ids that a protocol has in headers. Nothing of the other user is changed."""
    await people.set_users("private")
    mine = await create(people.ann)
    running = (await people.ann.post("/v1/turns", json={"message": LONG_ANSWER})).json()
    busy = mine | path_parameters(running["turn"], running["session"], "none", file=mine["file_id"])
    unknown = path_parameters(*UNKNOWN, file=f"file-{new_id()}")
    for ids in (mine, busy):
        for path, bodies in NAMING.items():
            for build in bodies:
                answers = []
                for names in (ids, unknown):
                    body, headers = build(names)
                    answer = await people.bob.post(path.format(**ids), json=body, headers=headers)
                    answers.append((answer.status_code, names, answer.text))
                (status, _, text), (unknown_status, _, unknown_text) = answers
                if unknown_status in (400, 404):
                    for name in ("session", "turn", "file_id", "project"):
                        text = text.replace(ids[name], "?")
                        unknown_text = unknown_text.replace(unknown[name], "?")
                    assert (status, text) == (unknown_status, unknown_text), (path, body)
                else:
                    # A new session of this name can be begun: the other user's is refused.
                    assert (status, "session" in text) == (404, True), (path, body, text)
    his = await end(people.bob, {"message": LINE})
    for name in (mine["turn"], UNKNOWN[0]):
        calls = await people.bob.get(f"/v1/sessions/{his['session']}/calls", params={"turn": name})
        run = await people.bob.get("/api/agui", params={"runId": name})
        stop = await people.bob.post(f"/api/copilotkit/agent/default/stop/{his['session']}", json={"runId": name})
        for answer in (calls, run, stop):
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "turn_not_found")
    thread = await people.bob.get("/api/agui", params={"threadId": mine["session"]})
    assert thread.json() == {"messages": [], "activeRun": None, "interrupts": None}
    connected = await people.bob.post("/api/copilotkit/agent/default/connect", json=run_of(mine))
    assert (connected.status_code, connected.content) == (200, b"")
    chosen = {"id": mine["session"]}
    taken = await people.bob.post("/v1/sessions", json=chosen)
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "session_exists")
    turn = (await people.ann.get(f"/v1/turns/{running['turn']}")).json()
    assert turn["outcome"] == "running"
    assert len((await people.ann.get(f"/v1/sessions/{mine['session']}/turns")).json()["data"]) == 2


async def test_the_users_of_a_shared_tenant_use_everything_of_it(people: People) -> None:
    """Except that a decision about a call, and a steer, need the user of the session."""
    mine = await create(people.ann, new_id())
    for case in CASES:
        if case.topic != "Ids in the path":
            continue
        there = await create(people.ann, new_id()) if case.method == "DELETE" else mine
        found = await request(people.bob, case, there, "HEAD" if ROWS[case.method, case.path].is_endless else "")
        assert found.is_success is (case.shared == ALL), (case, found.text)
    assert mine["session"] in (await people.bob.get("/v1/sessions?limit=200")).text


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_credential_without_a_user_owns_for_the_tenant_and_uses_everything(people: People) -> None:
    """Whatever user the body names. What it adds to a user's session belongs to that session."""
    await people.set_users("private")
    labelled = await end(people.company, {"message": LINE, "user": "ann"})
    session = (await people.company.post("/v1/sessions", json={"user": "ann"})).json()["session"]
    for path in (f"/v1/turns/{labelled['turn']}", f"/v1/sessions/{labelled['session']}", f"/v1/sessions/{session}"):
        assert (await people.ann.get(path)).status_code == 404
        assert (await people.company.get(path)).json()["owner"] is None
    # The first user who posts does not become the owner.
    refused = await people.ann.post("/v1/turns", json={"message": LINE, "session": session})
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "session_not_found")
    assert (await people.ann.get("/v1/turns", params={"user": "ann"})).json()["data"] == []
    hers = await end(people.ann, {"message": LINE, "user": "bob"})
    added = await end(people.company, {"message": LINE, "session": hers["session"]})
    turn = (await people.ann.get(f"/v1/turns/{added['turn']}")).json()
    assert (turn["owner"], turn["parent"]) == ("ann", hers["turn"])
    follow_up = await end(people.ann, {"message": LINE, "session": hers["session"]})
    found = (await people.ann.get("/v1/turns")).json()["data"]
    assert [one["turn"] for one in found] == [follow_up["turn"], added["turn"], hers["turn"]]
    assert (await people.bob.get(f"/v1/turns/{hers['turn']}")).status_code == 404
    assert (await people.company.get(f"/v1/turns/{hers['turn']}")).json()["user"] == "ann"
    assert (await people.company.delete(f"/v1/sessions/{hers['session']}")).status_code == 200


async def test_the_tenant_sees_who_owns_a_file_and_a_batch(people: People) -> None:
    """In the format of each API; what a credential without a user has made has no owner."""
    hers, theirs = await create(people.ann), await create(people.company)
    for version in ({}, {"anthropic-version": "2023-06-01"}):
        for path in ("/v1/files", "/v1/turn-batches", "/v1/batches", "/v1/messages/batches"):
            listed = (await people.company.get(path, headers=version)).json()["data"]
            assert list(dict.fromkeys(one.get("owner") for one in listed)) == [None, "ann"], path
    for path in ("files/{file_id}", "turn-batches/{batch}"):
        found = [(await people.company.get(f"/v1/{path}".format(**ids))).json() for ids in (hers, theirs)]
        assert [one.get("owner") for one in found] == ["ann", None], path


async def test_a_login_with_a_key_uses_everything_of_a_tenant_with_private_users(people: People) -> None:
    await people.set_users("private")
    hers = await end(people.ann, {"message": LINE})
    logged_in = await people.company.post("/v1/login")
    assert logged_in.status_code == 200, logged_in.text
    async with people.gateway.new_client() as page:
        page.headers["authorization"] = f"Bearer {logged_in.json()['access_token']}"
        assert (await page.get(f"/v1/turns/{hers['turn']}")).status_code == 200
        # An access token makes no login: logins would never end.
        assert (await page.post("/v1/login")).json()["error"]["code"] == "request_invalid"


async def test_a_token_without_a_user_is_refused_where_users_are_private(people: People) -> None:
    async with people.gateway.new_client() as client:
        client.headers["authorization"] = f"Bearer {token(people.tenant, None)}"
        assert (await client.get("/v1/turns")).status_code == 200
        await people.set_users("private")
        assert (await client.get("/v1/turns")).json()["error"]["code"] == "credential_invalid"
        await people.set_users("shared")
        assert (await client.get("/v1/turns")).status_code == 200


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_the_same_idempotency_key_names_another_turn_of_another_user(people: People) -> None:
    """A key in the header, a derived one, that of a session and of a file, and the id of a run of AG-UI."""
    await people.set_users("private")
    clients = (people.ann, people.bob, people.company)
    body = {"message": LINE, "user": "ann"}
    for key in ("one-key", "auto"):
        for path, found in (("/v1/turns", "turn"), ("/v1/sessions", "session")):
            if (key, found) == ("auto", "session"):
                continue
            sent = body if found == "turn" else {"title": "Rivers"}
            made = [[await once(client, path, sent, key) for _ in range(2)] for client in clients]
            assert [one[0][found] == one[1][found] for one in made] == [True] * 3
            assert len({one[0][found] for one in made}) == 3, (key, path)
    upload = {"file": ("a.txt", b"rivers")}
    ids = [
        (await client.post("/v1/files", files=upload, data={"purpose": "user_data"}, headers={"idempotency-key": "f"}))
        for client in clients
    ]
    assert len({one.json()["id"] for one in ids}) == 3
    run_id, threads = new_id(), [new_id(), new_id()]
    for client, thread in zip((people.ann, people.bob), threads, strict=True):
        run = {"threadId": thread, "runId": run_id, "messages": [{"id": "1", "role": "user", "content": LINE}]}
        turns = [(await client.post("/api/agui", json=run)).headers["tailrace-turn"] for _ in range(2)]
        assert turns[0] == turns[1]
        assert (await client.get("/api/agui", params={"runId": run_id})).status_code == 200
        assert (await client.get(f"/v1/turns/{turns[0]}")).json()["session"] == thread


async def once(client: httpx2.AsyncClient, path: str, body: Json, key: str) -> Json:
    answer = await client.post(path, json=body, headers={"idempotency-key": key})
    assert answer.is_success, answer.text
    return dict(answer.json())


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_two_users_who_choose_one_session_name_at_once_never_share_it(people: People) -> None:
    await people.set_users("private")
    for _ in range(5):
        body = {"message": LINE, "session": new_id(), "create_session": True}
        answers = await asyncio.gather(*(client.post("/v1/turns", json=body) for client in (people.ann, people.bob)))
        assert sorted(one.status_code for one in answers) == [202, 404]
        winner = (people.ann, people.bob)[[one.status_code for one in answers].index(202)]
        turns = (await winner.get(f"/v1/sessions/{body['session']}/turns")).json()["data"]
        assert len(turns) == 1


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_name_that_a_user_has_taken_gets_no_turn_that_the_company_makes_for_another_user(
    people: People,
) -> None:
    await people.set_users("private")
    name = new_id()
    taken = {"session": name, "create_session": True}
    await end(people.ann, {"message": LINE, **taken})
    for body in ({"message": LINE, **taken}, {"message": LINE, **taken, "parent": None}):
        refused = await people.company.post("/v1/turns", json={**body, "user": "bob"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "session_exists")
        assert (await people.company.post("/v1/turns", json={**body, "user": "ann"})).status_code == 202
        await until_equal(lambda: running_of(people.company, name), 0)
    assert (await people.company.post("/v1/turns", json={"message": LINE, **taken})).status_code == 202


async def running_of(client: httpx2.AsyncClient, session: str) -> int:
    """Returns how many turns of a session run."""
    found = await client.get("/v1/turns", params={"status": "running", "session": session})
    return len(found.json()["data"])


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_name_that_nobody_has_is_refused_like_that_of_another_user(people: People) -> None:
    """Also in a list of running turns: otherwise a user would learn which names exist."""
    await people.set_users("private")
    hers = (await end(people.ann, {"message": LINE}))["session"]
    asked = [("GET", "/v1/turns", {"status": "running", "session": name}) for name in (hers, "nobody")]
    answers = [await people.bob.request(method, path, params=params) for method, path, params in asked]
    assert [(one.status_code, one.json()["error"]["code"]) for one in answers] == [(404, "session_not_found")] * 2


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_post_with_a_cursor_of_another_user_is_refused(people: People) -> None:
    await people.set_users("private")
    body, stream = {"message": LINE}, {"accept": "text/event-stream"}
    events = parse((await people.ann.post("/v1/turns", json=body, headers=stream)).content)
    last = {"last-event-id": str(next(event.id for event in events if event.id is not None))}
    for sent in (body, {"message": f"{LINE} other"}):
        refusals = []
        for cursor in (last["last-event-id"], "9" * 15):
            refused = await people.bob.post("/v1/turns", json=sent, headers=stream | {"last-event-id": cursor})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "cursor_mismatch")
            refusals.append(refused.json()["error"]["message"].replace(cursor, "?"))
        assert refusals[0] == refusals[1]
    assert (await people.ann.post("/v1/turns", json=body, headers=stream | last)).status_code == 200


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_streams_of_others_end_when_the_users_become_private(people: People) -> None:
    """Within a second: of a turn, of its session, and by a ticket. Those of the owner and the company resume."""
    running = (await people.ann.post("/v1/turns", json={"message": LONG_ANSWER})).json()
    events, session = running["links"]["events"], f"/v1/sessions/{running['session']}/events"
    ticket = (await people.bob.post(f"/v1/turns/{running['turn']}/tickets", json={"is_shared": True})).json()["events"]
    async with people.gateway.new_client() as nobody:
        del nobody.headers["authorization"]
        seen = {
            name: asyncio.create_task(read_until_cut(client, path))
            for name, client, path in (
                ("turn", people.bob, events),
                ("session", people.bob, session),
                ("ticket", nobody, ticket),
                ("owner", people.ann, events),
                ("company", people.company, events),
            )
        }
        await asyncio.sleep(0.5)
        assert not any(task.done() for task in seen.values())
        began_at = asyncio.get_running_loop().time()
        await people.set_users("private")
        others = [seen[name] for name in ("turn", "session", "ticket", "owner")]
        await asyncio.wait(others, timeout=5)
        assert all(task.done() for task in others)
        assert asyncio.get_running_loop().time() - began_at < 3
        assert not seen["company"].done()
        for client, path in ((people.bob, events), (people.bob, session), (nobody, ticket)):
            assert (await client.get(path)).status_code == 404, path
        again = {"last-event-id": seen["owner"].result()}
        async with people.ann.stream("GET", events, headers=again) as resumed:
            assert resumed.status_code == 200
            assert (await anext(resumed.aiter_lines())) != ""
    await people.company.post(f"/v1/turns/{running['turn']}/cancel")
    await seen["company"]
    await people.set_users("shared")
    assert (await people.bob.get(f"/v1/turns/{running['turn']}")).json()["outcome"] == "cancelled"


async def read_until_cut(client: httpx2.AsyncClient, path: str) -> str:
    """Reads a stream until it ends. Returns the last id."""
    last = ""
    async with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                last = line.removeprefix("id: ")
    return last


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_session_stream_that_waits_for_a_name_shows_no_turn_of_another_user(people: People) -> None:
    await people.set_users("private")
    name = new_id()
    waiting = asyncio.create_task(collect(people.bob, f"/v1/sessions/{name}/events?wait=true"))
    own = asyncio.create_task(collect(people.ann, f"/v1/sessions/{name}/events?wait=true"))
    await asyncio.sleep(0.3)
    made = await end(people.ann, {"message": LINE, "session": name, "create_session": True})

    async def has_shown() -> bool:
        return made["turn"] in SEEN.get(id(people.ann), "")

    await until(has_shown)
    await asyncio.sleep(0.5)
    for task in (waiting, own):
        task.cancel()
    assert made["turn"] not in SEEN[id(people.bob)]


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_the_position_of_a_session_stream_names_no_turn_of_another_user(people: People) -> None:
    """A user who sends numbers as a position would learn from the next one which of them are turns of others."""
    await people.set_users("private")
    hers = (await people.ann.post("/v1/turns", json={"message": LONG_ANSWER})).json()
    his = await end(people.bob, {"message": LINE})
    path = f"/v1/sessions/{hers['session']}/events"
    position = await first_id(people.ann, path, lambda found: "." in found)
    for client, session, is_known in ((people.ann, hers, True), (people.bob, his, False)):
        path = f"/v1/sessions/{session['session']}/events?after={position}"
        assert ("." in await first_id(client, path)) is is_known


async def first_id(client: httpx2.AsyncClient, path: str, is_wanted: Callable[[str], bool] = bool) -> str:
    """Returns the first wanted id that a stream sends."""
    async with client.stream("GET", path) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("id: ") and is_wanted(found := line.removeprefix("id: ")):
                return found
    raise AssertionError(f"{path} has ended without an id")


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_chat_of_ai_sdk_with_the_id_of_another_users_turn_is_as_unknown(people: People) -> None:
    """The path has the id of a chat or of a turn. Without an answer to resume, `useChat` expects 204."""
    await people.set_users("private")
    running = (await people.ann.post("/v1/turns", json={"message": LONG_ANSWER})).json()
    for query in ("", "?startIndex=0", "?startIndex=-1"):
        path = f"/api/chat/{{}}/stream{query}"
        theirs, unknown = [await people.bob.get(path.format(turn)) for turn in (running["turn"], UNKNOWN[0])]
        assert (theirs.status_code, theirs.content) == (unknown.status_code, unknown.content), query
        assert (await people.ann.head(path.format(running["turn"]))).status_code == 200


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_claude_code_of_a_private_user_repeats_a_turn_until_it_has_failed(people: People) -> None:
    """Then it starts another one, as in a shared tenant."""
    await people.set_users("private")
    headers = {"x-claude-code-session-id": new_id()}

    async def post(line: str) -> str:
        asked = [{"role": "user", "content": line}]
        body = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": asked, "stream": True}
        answer = await people.ann.post("/v1/messages", json=body, headers=headers)
        return str(answer.headers["tailrace-turn"])

    assert len({await post(LINE) for _ in range(3)}) == 1
    # Its first model call and the repetitions of the call fail.
    failed, second, third = [await post(f"{LINE} fault=529x5") for _ in range(3)]
    assert failed != second == third


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_private_user_steers_and_decides_in_a_project_that_the_tenant_has_chosen(people: People) -> None:
    """The following turn stays in it. The user itself can name no project."""
    await people.set_users("private")
    session = (await end(people.ann, {"message": LINE}))["session"]
    of_project = {"session": session, "project": f"rivers-{new_id()}"}
    assert (await people.ann.post("/v1/turns", json={"message": LINE, **of_project})).status_code == 404
    added = (await people.company.post("/v1/turns", json={"message": LONG_ANSWER, **of_project})).json()
    steered = await people.ann.post(f"/v1/turns/{added['turn']}/steer", json={"message": LINE})
    assert steered.status_code == 202, steered.text
    await people.ann.get(steered.json()["links"]["events"])
    calling = {"message": f"{LINE} tool=look", "tools": [{"name": "look", "input_schema": {}}], **of_project}
    await end(people.company, calling)
    (call,) = (await people.ann.get(f"/v1/sessions/{session}/calls")).json()["calls"]
    path = f"/v1/sessions/{session}/calls/{call['call']}"
    decided = (await people.ann.post(path, json={"result": "blue"})).json()
    assert decided["next"] is not None, decided
    for turn in (steered.json()["turn"], decided["next"]):
        found = await people.company.get(f"/v1/turns/{turn}")
        assert (found.json()["project"], found.json()["owner"]) == (of_project["project"], "ann")


SEEN: dict[int, str] = {}


async def collect(client: httpx2.AsyncClient, path: str) -> None:
    """Adds to SEEN what a stream sends."""
    async with client.stream("GET", path) as answer:
        async for text in answer.aiter_text():
            SEEN[id(client)] = SEEN.get(id(client), "") + text


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_turn_that_is_not_stored_is_hidden_and_cannot_be_deleted_by_another_user(people: People) -> None:
    """Persistence knows no owner of it: the gateway reads its request."""
    await people.set_users("private")
    running = (await people.ann.post("/v1/turns", json={"message": LONG_ANSWER, "store": False})).json()
    path = f"/v1/turns/{running['turn']}"
    for method, at in (("GET", path), ("DELETE", path), ("POST", f"{path}/cancel"), ("GET", f"{path}/events")):
        assert (await people.bob.request(method, at)).status_code == 404, at
    assert (await people.ann.get(path)).json()["outcome"] == "running"
    assert (await people.ann.delete(path)).status_code == 200


async def test_a_blob_is_read_by_the_users_who_have_sent_it(people: People) -> None:
    await people.set_users("private")
    await create(people.ann)
    path = f"/v1/blobs/{LONG_SHA256}"
    assert [(await client.get(path)).status_code for client in (people.ann, people.company, people.bob)] == [
        200,
        200,
        404,
    ]
    await create(people.bob)
    assert (await people.bob.get(path)).status_code == 200


async def test_an_erasure_of_a_user_erases_what_it_owns(people: People) -> None:
    """Turns that the tenant has added to its sessions, and its files."""
    await people.set_users("private")
    hers = await create(people.ann)
    added = await end(people.company, {"message": LINE, "session": hers["session"], "user": "nobody"})
    report = (await people.company.delete("/v1/users?user=ann")).json()
    assert (report["rows"]["files"], report["complete"]) == (1, True)
    for path in (f"/v1/turns/{added['turn']}", f"/v1/files/{hers['file_id']}", f"/v1/sessions/{hers['session']}"):
        assert (await people.company.get(path)).status_code == 404
    assert "ann" not in msgspec.json.encode((await people.company.get("/v1/sessions")).json()).decode()


@pytest.mark.rule("S20")
@pytest.mark.rule("R146")
async def test_a_websocket_continues_no_response_of_another_user(people: People) -> None:
    """Each message is a request of its own. The socket of a user is closed when the users become private."""
    mine = await end(people.ann, {"message": LINE})
    bearer = {"authorization": f"Bearer {token(people.tenant, 'bob')}"}
    body = {"type": "response.create", "model": "claude-haiku-5-5", "input": LINE}
    async with raw(people.gateway.url, bearer) as opened:
        await people.set_users("private")
        async with asyncio.timeout(5):
            await opened.wait_closed()
    async with raw(people.gateway.url, bearer) as opened:
        refusals = []
        for turn in (mine["turn"], UNKNOWN[0]):
            await opened.send(msgspec.json.encode(body | {"previous_response_id": f"resp_{turn}"}).decode())
            refusals.append(await read_error(opened))
        assert refusals[0] == refusals[1]
        assert refusals[0][0] in (400, 404)


@pytest.mark.rule("S20")
@pytest.mark.rule("R145")
async def test_no_token_changes_the_setting(people: People) -> None:
    """Not even one whose claim names the scope `admin`. An operator's key changes that of each tenant."""
    await people.set_users("private")
    admin = {"authorization": f"Bearer {token(people.tenant, 'bob', scopes='admin read write manage')}"}
    for headers in (admin, {}):
        answer = await people.bob.put(f"/v1/admin/tenants/{people.tenant}", json={"users": "shared"}, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "scope_missing")
    assert await people.keys.list_private() >= {people.tenant}
