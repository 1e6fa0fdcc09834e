"""The routes of sessions: create, list, rename, turns, branches and statistics."""

import asyncio
from functools import partial

import httpx2
import pytest

from tailrace.gateway.history_client import HistoryClient
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import Claims, TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness.requests import get, pages, post_until_ended
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, api_keys, on_shared_loop

ENDLESS = {"message": "#sim words=100000 rate=50"}


async def test_a_created_session_is_returned_and_listed(gateway: Gateway) -> None:
    """Without an id it gets one. The id of an existing session, also one that a turn has begun, is refused."""
    body = {"title": "Rivers", "model": "claude-haiku-5-5", "system_prompt": "Be brief.", "project_id": "geography"}
    answer = await gateway.client.post("/v1/sessions", json=body)
    session = answer.json()
    path = f"/v1/sessions/{session['id']}"
    assert (answer.status_code, answer.headers["location"]) == (200, path)
    assert session == {
        **body,
        "id": session["session"],
        "session": session["session"],
        "preview": None,
        "user": None,
        "owner": None,
        "created_at": session["created_at"],
        "updated_at": session["created_at"],
        "is_active": True,
        "turns": 0,
        "message_count": 0,
        "usage": {},
        "total_tokens": 0,
        "cost_usd": 0.0,
        "total_cost": 0.0,
    }
    assert await get(gateway, path) == session
    # Older clients read `sessions`.
    listed = {"object": "list", "data": [session], "has_more": False, "next": None, "sessions": [session]}
    pagination = {"page": 1, "per_page": 50, "total_items": 1, "total_pages": 1, "has_next": False, "has_prev": False}
    assert await get(gateway, "/v1/sessions") == {**listed, "pagination": pagination}
    empty = {"object": "list", "data": [], "has_more": False, "next": None}
    assert await get(gateway, f"{path}/turns") == {**empty, "turns": []}
    begun = (await post_until_ended(gateway))["session"]
    for name in (begun, session["id"]):
        answer = await gateway.client.post("/v1/sessions", json={"id": name, "title": "Lakes"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (409, "session_exists", "id")
    assert (await get(gateway, path))["title"] == "Rivers"


async def test_lists_have_pages_and_a_session_has_the_totals_of_its_turns(gateway: Gateway) -> None:
    """Sessions newest first, turns oldest first. A new title changes nothing else, also not the order."""
    history = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    question = {"role": "user", "content": "#sim words=1 rate=0"}
    first = await post_until_ended(gateway, message=None, messages=[*history, question])
    session, path = first["session"], f"/v1/sessions/{first['session']}"
    turns = [first["turn"]] + [(await post_until_ended(gateway, session=session))["turn"] for _ in range(3)]
    records = [await get(gateway, f"/v1/turns/{turn}") for turn in turns]
    for limit in (1, 2, 50):
        found = await pages(gateway, f"{path}/turns", "data", limit)
        assert [one for page in found for one in page] == records
    newest = await pages(gateway, f"{path}/turns", "data", 3, order="desc")
    assert [one for page in newest for one in page] == records[::-1]
    # Older clients read `turns`.
    whole = await get(gateway, f"{path}/turns")
    assert whole["turns"] == whole["data"] == records
    assert (await gateway.client.get(f"{path}/turns?order=up")).status_code == 400
    sessions = [session, (await post_until_ended(gateway))["session"], (await post_until_ended(gateway))["session"]]
    for limit in (1, 2, 200):
        found = await pages(gateway, "/v1/sessions", "data", limit)
        assert [one["session"] for page in found for one in page] == sessions[::-1]
        assert all(len(page) <= limit for page in found)

    record = await get(gateway, path)
    # Added messages and answers count; the history that a follow-up repeats does not.
    assert (record["session"], record["turns"], record["message_count"]) == (session, 4, 10)
    assert record["cost_usd"] == record["total_cost"] > 0
    assert record["cost_usd"] == pytest.approx(sum(turn["cost_usd"] for turn in records))
    assert record["usage"]["output_tokens"] == sum(turn["usage"]["output_tokens"] for turn in records)
    assert record["total_tokens"] == sum(record["usage"].values())
    for title in ("Rivers \U0001f30a", "Lakes", None):
        renamed = await gateway.client.patch(path, json={"title": title})
        assert (renamed.status_code, renamed.json()) == (200, {**record, "title": title})
    # Defaults of the next turns. A field that is left out, as `title` here, does not change.
    for defaults in ({"model": "claude-haiku-5-5", "system_prompt": "Be brief."}, {"system_prompt": None}):
        changed = await gateway.client.patch(path, json=defaults)
        assert changed.json() == (record := {**record, "title": None, **defaults})
    assert [one["id"] for one in (await get(gateway, "/v1/sessions"))["data"]] == sessions[::-1]
    following = (await post_until_ended(gateway, session=session))["turn"]
    assert (await get(gateway, f"/v1/turns/{following}"))["model"] == "claude-haiku-5-5"


async def test_the_preview_of_a_session_is_the_beginning_of_its_first_question(gateway: Gateway) -> None:
    """In each kind of list, and in the session. The text of a deleted turn has left it; a blob is not read for it."""
    path, question = "/v1/sessions/waves", "Why?\n" + "\N{WATER WAVE}" * 300
    await gateway.client.post("/v1/sessions", json={"id": "waves", "title": "Waves", "user": "ann"})
    assert (await get(gateway, path))["preview"] is None
    blocks = [{"type": "text", "text": question}]
    history = [{"role": "user", "content": blocks}, {"role": "assistant", "content": "Because."}]
    again = {"role": "user", "content": "#sim words=1 rate=0"}
    first = (await post_until_ended(gateway, message=None, messages=[*history, again], session="waves"))["turn"]
    await post_until_ended(gateway, message="And then?", session="waves")
    for query in ("", "?page=1", "?user=ann", "?user=ann&page=1"):
        [listed] = (await get(gateway, f"/v1/sessions{query}"))["data"]
        assert (listed["title"], listed["preview"]) == ("Waves", question[:200])
    assert (await get(gateway, path))["preview"] == question[:200]
    assert (await gateway.client.delete(f"/v1/turns/{first}")).json()["turns"] == 2
    assert (await get(gateway, path))["preview"] is None
    long = await post_until_ended(gateway, message="x " * 70_000)
    assert (await get(gateway, f"/v1/sessions/{long['session']}"))["preview"] is None
    many = [{"role": "user", "content": "x" * 60_000}, {"role": "assistant", "content": "x"}]
    large = await post_until_ended(gateway, message=None, messages=[*many, *many, *many, *many, *many, again])
    assert (await get(gateway, f"/v1/sessions/{large['session']}"))["preview"] is None


async def test_numbered_pages_leave_out_no_session(gateway: Gateway) -> None:
    """An answer is at most 512 KiB. After a shorter page, the next number would skip the sessions that did not fit."""
    for _ in range(6):
        await gateway.client.post("/v1/sessions", json={"system_prompt": "a" * 100_000})
    short = await get(gateway, "/v1/sessions?per_page=6")
    assert (len(short["data"]), short["has_more"], short["pagination"]) == (5, True, None)
    assert len((await get(gateway, f"/v1/sessions?after={short['next']}"))["data"]) == 1
    refused = await gateway.client.get("/v1/sessions?page=1&per_page=6")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "per_page")
    found = [await get(gateway, f"/v1/sessions?page={number}&per_page=3") for number in (1, 2)]
    assert [len(page["data"]) for page in found] == [3, 3]


@pytest.mark.rule("R72")
async def test_a_running_turn_is_listed_at_once_and_with_its_text_so_far(gateway: Gateway) -> None:
    """A client that has read more from the turn itself must not see it become shorter."""
    accepted = (await gateway.client.post("/v1/turns", json=ENDLESS)).json()
    path = f"/v1/sessions/{accepted['session']}/turns"
    assert [(one["turn"], one["outcome"]) for one in (await get(gateway, path))["turns"]] == [
        (accepted["turn"], "running")
    ]

    async def cursor() -> int:
        record = await get(gateway, accepted["links"]["self"])
        return record["cursor"] if len(record["text"]) > 30 else 0

    seen = await until(cursor)
    assert (await get(gateway, path))["turns"][0]["cursor"] >= seen
    await gateway.client.post(accepted["links"]["cancel"])


async def test_running_turns_are_listed_and_cancelled_by_session(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """Oldest first, in pages, with their text so far. Another tenant sees and cancels none of them."""
    theirs = await new_gateway(system.nats_url, api_keys=api_keys(Tenant("others")))
    first, other, branch = [
        (await gateway.client.post("/v1/turns", json=ENDLESS | given)).json()
        for given in (
            {"session": "rivers", "create_session": True},
            {},
            {"session": "rivers", "on_busy": "branch"},
        )
    ]
    await post_until_ended(gateway)

    async def running(**query: str) -> list[str]:
        found = await pages(gateway, "/v1/turns", "data", 1, status="running", **query)
        return [one["turn"] for page in found for one in page]

    assert await running() == [first["turn"], other["turn"], branch["turn"]]
    assert await running(session="rivers") == [first["turn"], branch["turn"]]
    assert await running(session="none") == []
    assert (await get(theirs, "/v1/turns?status=running"))["data"] == []
    cancel = "/v1/sessions/rivers/cancel"
    assert (await theirs.client.post(cancel)).status_code == 404
    cancelled = (await gateway.client.post(cancel)).json()
    assert cancelled == {"session": "rivers", "cancelled": [first["turn"], branch["turn"]]}
    assert (await gateway.client.post(cancel)).json() == {"session": "rivers", "cancelled": []}
    assert await running() == [other["turn"]]
    for wrong in ("status=ended", "status=running&user=ann", "status=failed&session=rivers"):
        assert (await gateway.client.get(f"/v1/turns?{wrong}")).status_code == 400
    await gateway.client.post(other["links"]["cancel"])


async def test_turns_are_listed_by_outcome(gateway: Gateway) -> None:
    """Newest first, in pages, also together with a user."""

    async def list_turns(**query: str) -> list[str]:
        found = await pages(gateway, "/v1/turns", "data", 1, **query)
        return [one["turn"] for page in found for one in page]

    expected: dict[str, list[str]] = {"completed": [], "failed": []}
    for message in ("#sim words=1 rate=0", "#sim words=1 rate=0 fault=400@0+"):
        for user in ("ann", "bob"):
            turn = (await gateway.client.post("/v1/turns", json={"message": message, "user": user})).json()["turn"]
            outcome = await until(partial(outcome_of, gateway, turn))
            assert outcome
            expected[outcome].insert(0, turn)
    running = (await gateway.client.post("/v1/turns", json=ENDLESS | {"user": "ann"})).json()
    assert await list_turns(status="cancelled") == []
    await gateway.client.post(running["links"]["cancel"])
    for outcome, turns in {**expected, "cancelled": [running["turn"]]}.items():
        assert await list_turns(status=outcome) == turns
        assert await list_turns(status=outcome, user="ann") == turns[-1:]


async def outcome_of(gateway: Gateway, turn: str) -> str | None:
    outcome: str = (await get(gateway, f"/v1/turns/{turn}"))["outcome"]
    return None if outcome == "running" else outcome


async def test_turns_use_the_model_and_system_prompt_of_their_session(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Unless they have their own. They are in the request entry; also of a branch beside a running first turn."""
    own = {"id": "rivers", "model": "claude-haiku-5-5", "system_prompt": [{"type": "text", "text": "Be brief."}]}
    await gateway.client.post("/v1/sessions", json=own)
    running = (await gateway.client.post("/v1/turns", json=ENDLESS | {"session": "rivers"})).json()
    found = []
    for given in (
        {"on_busy": "branch"},
        {"model": "claude-sonnet-5-5", "system": "Be long.", "parent": None},
        {},
        {"parent": None},
    ):
        turn = (await post_until_ended(gateway, session="rivers", **given))["turn"]
        request = (await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, turn)))).request
        assert request is not None
        found.append((request.model, request.system, request.parent is None))
    inherited = (own["model"], own["system_prompt"])
    assert found == [
        (*inherited, True),
        ("claude-sonnet-5-5", "Be long.", True),
        (*inherited, False),
        (*inherited, True),
    ]
    await gateway.client.post(running["links"]["cancel"])


async def test_openais_routes_use_the_model_of_their_session(gateway: Gateway) -> None:
    """Unless the request names a model. A new session has the default model."""
    await gateway.client.post("/v1/sessions", json={"id": "rivers", "model": "claude-haiku-5-5"})

    async def ask(path: str, headers: dict[str, str] | None = None, **body: object) -> tuple[str, str]:
        text = "#sim words=1 rate=0"
        question = {"input": text} if path == "/v1/responses" else {"messages": [{"role": "user", "content": text}]}
        answer = (await gateway.client.post(path, json=question | body, headers=headers or {})).json()
        return answer["model"], answer["id"]

    chat, responses = "/v1/chat/completions", "/v1/responses"
    own, last = await ask(responses, conversation="rivers")
    found = [
        own,
        (await ask(responses, previous_response_id=last))[0],
        (await ask(responses, {"x-session-id": "rivers"}))[0],
        (await ask(chat, session_id="rivers"))[0],
        (await ask(chat, {"x-session-id": "rivers"}))[0],
    ]
    assert found == ["claude-haiku-5-5"] * 5
    for path in (chat, responses):
        assert (await ask(path, session_id="rivers", model="claude-opus-5-5"))[0] == "claude-opus-5-5"
        assert (await ask(path, session_id=f"new{path[4:8]}"))[0] == "claude-sonnet-5-5"


async def test_branches_are_the_leaves_with_their_ancestors(gateway: Gateway) -> None:
    """Newest first, in pages; every turn is on a branch."""
    root = await post_until_ended(gateway)
    session, path = root["session"], f"/v1/sessions/{root['session']}/branches"
    left = await post_until_ended(gateway, session=session, parent=root["turn"])
    right = await post_until_ended(gateway, session=session, parent=root["turn"])
    leaf = await post_until_ended(gateway, session=session)
    for limit in (1, 2):
        found = [one for page in await pages(gateway, path, "data", limit) for one in page]
        assert [(one["turn"], one["length"], one["turns"]) for one in found] == [
            (leaf["turn"], 3, [root["turn"], right["turn"], leaf["turn"]]),
            (left["turn"], 2, [root["turn"], left["turn"]]),
        ]
    assert found[0]["outcome"] == "completed"


async def test_statistics_cover_the_active_sessions(gateway: Gateway) -> None:
    """With the usage by model, and the sessions with a running turn."""
    first = await post_until_ended(gateway, model="claude-haiku-5-5")
    second = (await gateway.client.post("/v1/turns", json={"message": "#sim wait=3600"})).json()
    stats = await get(gateway, "/v1/sessions/stats")
    # The record of the running turn may have the prompt's usage already.
    records = [await get(gateway, f"/v1/sessions/{one['session']}") for one in (first, second)]
    by_model = {model["key"]: model for model in stats["by_model"]}
    assert by_model["claude-haiku-5-5"]["usage"] == records[0]["usage"]
    assert stats["session_stats"] == {
        "active_sessions": 2,
        "turns": 2,
        "total_tokens": sum(record["total_tokens"] for record in records),
        "total_cost": pytest.approx(sum(record["total_cost"] for record in records)),
        "total_messages": sum(record["message_count"] for record in records),
        "models_in_use": ["claude-haiku-5-5", "claude-sonnet-5-5"],
    }
    assert (stats["active_claude_sessions"], stats["claude_sessions"]) == (1, [second["session"]])
    await gateway.client.post(second["links"]["cancel"])


REFERENCES = [{"type": "text", "text": {"tailrace:blob": "0" * 64, "bytes": 100_000}}] * 1000
WRONG_SESSIONS: list[tuple[dict[str, object], str]] = [
    ({"id": ""}, "id"),
    ({"id": "a/b"}, "id"),
    ({"id": "stats"}, "id"),
    ({"id": "x" * 129}, "id"),
    ({"title": ""}, "title"),
    ({"title": "x" * 501}, "title"),
    ({"project_id": "a b"}, "project_id"),
    ({"system_prompt": "x" * 200_000}, "system_prompt"),
    ({"system_prompt": 7}, "system_prompt"),
    ({"system_prompt": [{"type": "image"}]}, "`system_prompt[0]` is not a text block"),
    ({"system_prompt": [{"type": "text", "text": ""}]}, "`system_prompt[0]` is not a text block"),
    ({"model": ""}, "`model` is empty"),
    # References to one large blob would become as many copies of it in each call of its turns.
    ({"system_prompt": REFERENCES}, "The key `tailrace:blob` is reserved"),
    ({"temperature": 1}, "temperature"),
]


@on_shared_loop
@pytest.mark.parametrize(("body", "word"), WRONG_SESSIONS, ids=lambda one: str(one)[:30])
async def test_an_invalid_session_is_refused(shared_gateway: Gateway, body: dict[str, object], word: str) -> None:
    answer = await shared_gateway.client.post("/v1/sessions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert word in answer.json()["error"]["message"]
    if word not in ("id", "project_id"):
        changed = await shared_gateway.client.patch("/v1/sessions/any", json=body)
        assert (changed.status_code, word in changed.json()["error"]["message"]) == (400, True)


LIMITS = ["0", "201", "-1", "+1", "1_0", "abc", "", "٣", "1.5", "9" * 5000]
CURSORS = ["abc", "-1", "%00", "' OR 1=1 --", "x" * 5000, "🌊"]


@on_shared_loop
async def test_invalid_limits_cursors_and_pages_are_refused(shared_gateway: Gateway) -> None:
    """A numbered page too, of a list that has none: a client would read the first one for ever."""
    turns = f"/v1/sessions/{(await post_until_ended(shared_gateway))['session']}/turns"
    wrong: list[tuple[str, dict[str, str], str]] = [
        *(("/v1/sessions", {"limit": limit}, "request_invalid") for limit in LIMITS),
        *((path, {"after": cursor}, "cursor_invalid") for cursor in CURSORS for path in ("/v1/sessions", turns)),
        *(("/v1/sessions", {"page": page}, "request_invalid") for page in ("0", "-1", "x", "")),
        ("/v1/sessions", {"page": "2", "after": "x"}, "request_invalid"),
        ("/v1/sessions", {"per_page": "201"}, "request_invalid"),
        ("/v1/sessions", {"per_page": "2", "limit": "2"}, "request_invalid"),
        (turns, {"page": "2"}, "request_invalid"),
    ]
    for path, params, code in wrong:
        answer = await shared_gateway.client.get(path, params=params)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, code), params
    assert (await shared_gateway.client.get("/v1/sessions", params={"page": "1"})).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/turns", {"message": "hi", "session": "stats", "create_session": True}, {}),
        (
            "/v1/messages",
            {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
            {"x-session-id": "stats"},
        ),
        ("/api/chat", {"id": "stats", "messages": [{"role": "user", "parts": [{"type": "text", "text": "hi"}]}]}, {}),
    ],
)
async def test_a_session_id_that_is_a_route_is_refused(
    lone_gateway: Gateway, path: str, body: dict[str, object], headers: dict[str, str]
) -> None:
    """In every protocol: GET could not return the session."""
    refused = await lone_gateway.client.post(path, json=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")
    assert "/v1/sessions/stats" in refused.json()["error"]["message"]


@pytest.mark.parametrize(("path", "field"), [("/v1/sessions", "title"), ("/v1/projects", "name")])
async def test_an_idempotency_key_creates_one_session_or_project(gateway: Gateway, path: str, field: str) -> None:
    """A repetition returns the first one, or creates it if no request has; another body and `auto` are refused."""

    async def create(key: str, **fields: str) -> httpx2.Response:
        return await gateway.client.post(path, json={field: "Rivers", **fields}, headers={"idempotency-key": key})

    answers = await asyncio.gather(*(create("one") for _ in range(4)))
    assert [answer.status_code for answer in answers] == [200] * 4
    first = answers[0].json()
    assert [answer.json() for answer in answers] == [first] * 4
    chosen = [(await create("two", id="lakes")).json()["id"] for _ in range(2)]
    assert chosen == ["lakes", "lakes"]
    assert [one["id"] for one in (await get(gateway, path))["data"]] == ["lakes", first["id"]]
    for _ in range(2):
        # It has created nothing, so its repetition is no success either.
        refused = await create("three", id="lakes")
        assert (refused.status_code, refused.json()["error"]["code"].split("_")[1]) == (409, "exists")
    for key, fields, expected in (
        ("one", {"id": "seas"}, (422, "idempotency_key_reused")),
        ("auto", {}, (400, "idempotency_key_invalid")),
    ):
        refused = await create(key, **fields)
        assert (refused.status_code, refused.json()["error"]["code"]) == expected
    await gateway.client.delete(f"{path}/{first['id']}")
    assert (await create("one")).json()["id"] == first["id"]


@pytest.mark.parametrize(("read_by", "name"), [(Claims, "find"), (HistoryClient, "query")], ids=["claim", "session"])
async def test_a_repetition_that_is_overtaken_by_its_first_request_returns_the_same_session(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, read_by: type, name: str
) -> None:
    """Whichever of its two reads is the last one before the first request creates the session."""
    read, first = getattr(read_by, name), list[httpx2.Response]()

    async def create() -> httpx2.Response:
        return await gateway.client.post("/v1/sessions", json={"id": "deltas"}, headers={"idempotency-key": "four"})

    async def read_and_let_pass(*arguments: object) -> object:
        monkeypatch.setattr(read_by, name, read)
        try:
            return await read(*arguments)
        finally:
            first.append(await create())

    monkeypatch.setattr(read_by, name, read_and_let_pass)
    answers = [await create(), await create(), *first]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert {answer.json()["id"] for answer in answers} == {"deltas"}
