"""The routes of sessions."""

import pytest

from tailrace.proto.ids import Tenant
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness.requests import pages, posted
from tests.harness.until import until
from tests.integration.conftest import Gateway, on_shared_loop


async def test_sessions_are_listed_newest_first_in_pages(gateway: Gateway) -> None:
    """Each once, whatever the page's size."""
    made = [(await posted(gateway))["session"] for _ in range(5)]
    for limit in (1, 2, 5, 200):
        got = await pages(gateway, "/v1/sessions", "sessions", limit)
        assert [one["session"] for page in got for one in page] == made[::-1]
        assert all(len(page) <= limit for page in got)


async def test_turns_of_a_session_are_listed_oldest_first_in_pages(gateway: Gateway) -> None:
    """All branches, each turn as GET on it would tell it."""
    first = await posted(gateway)
    made = [first["turn"]] + [(await posted(gateway, session=first["session"]))["turn"] for _ in range(3)]
    for limit in (1, 2, 50):
        got = await pages(gateway, f"/v1/sessions/{first['session']}/turns", "turns", limit)
        assert [one["turn"] for page in got for one in page] == made
    told = [(await gateway.client.get(f"/v1/turns/{turn}")).json() for turn in made]
    assert [one for page in got for one in page] == told


async def test_a_session_has_the_totals_of_its_turns(gateway: Gateway) -> None:
    """What was acknowledged is in the answer: no waiting, no asking twice."""
    first = await posted(gateway)
    second = await posted(gateway, session=first["session"])
    turns = [(await gateway.client.get(one["links"]["self"])).json() for one in (first, second)]
    session = (await gateway.client.get(f"/v1/sessions/{first['session']}")).json()
    assert (session["session"], session["turns"]) == (first["session"], 2)
    assert session["cost_usd"] == pytest.approx(sum(turn["cost_usd"] for turn in turns))
    assert session["cost_usd"] > 0
    assert session["usage"]["output_tokens"] == sum(turn["usage"]["output_tokens"] for turn in turns)


async def test_an_accepted_turn_is_in_its_session(gateway: Gateway) -> None:
    """Before its end, and at once."""
    accepted = (await gateway.client.post("/v1/turns", json={"message": "#sim words=500 rate=20"})).json()
    page = (await gateway.client.get(f"/v1/sessions/{accepted['session']}/turns")).json()
    assert [(one["turn"], one["outcome"]) for one in page["turns"]] == [(accepted["turn"], "running")]
    await gateway.client.post(accepted["links"]["cancel"])


@pytest.mark.rule("R72")
async def test_a_running_turn_is_listed_with_its_text_so_far(gateway: Gateway) -> None:
    """Whoever has been told more by the turn itself would see it grow shorter."""
    accepted = (await gateway.client.post("/v1/turns", json={"message": "#sim words=500 rate=50 tag=far"})).json()

    async def seen() -> int:
        told = (await gateway.client.get(accepted["links"]["self"])).json()
        return told["cursor"] if len(told["text"]) > 30 else 0

    cursor = await until(seen)
    page = (await gateway.client.get(f"/v1/sessions/{accepted['session']}/turns")).json()
    assert page["turns"][0]["cursor"] >= cursor
    await gateway.client.post(accepted["links"]["cancel"])


async def test_a_session_is_created(gateway: Gateway) -> None:
    """It is there as it was told, with nothing in it, in the list and by itself; without a name it gets one."""
    told = {"title": "Rivers", "model": "claude-haiku-5-5", "system_prompt": "Be brief.", "project_id": "geography"}
    answer = await gateway.client.post("/v1/sessions", json=told)
    made = answer.json()
    assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/sessions/{made['id']}")
    assert made == {
        **told,
        "id": made["session"],
        "session": made["session"],
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
        "is_active": True,
        "turns": 0,
        "message_count": 0,
        "usage": {},
        "total_tokens": 0,
        "cost_usd": 0.0,
        "total_cost": 0.0,
    }
    assert (await gateway.client.get(answer.headers["location"])).json() == made
    assert (await gateway.client.get("/v1/sessions")).json() == {
        "object": "list",
        "data": [made],
        "has_more": False,
        "next": None,
        "sessions": [made],
    }
    turns = await gateway.client.get(f"/v1/sessions/{made['id']}/turns")
    assert (turns.status_code, turns.json()) == (200, {"turns": [], "next": None})


async def test_turns_use_the_model_and_system_prompt_of_their_session(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """What a turn names goes before; the session's is in the log, so that a generator needs no database."""
    told = {"id": "rivers", "model": "claude-haiku-5-5", "system_prompt": [{"type": "text", "text": "Be brief."}]}
    await gateway.client.post("/v1/sessions", json=told)
    asked = []
    for given in ({}, {"model": "claude-sonnet-5-5", "system": "Be long."}, {}, {"parent": None}):
        turn = (await posted(gateway, session="rivers", **given))["turn"]
        request = (await system_log.turn(TurnKey(tenant, turn))).request
        assert request is not None
        asked.append((request.model, request.system))
    own = (told["model"], told["system_prompt"])
    assert asked == [own, ("claude-sonnet-5-5", "Be long."), own, own]


async def test_a_branch_from_the_beginning_uses_the_model_of_the_session(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Also when it begins where that turn did, because that one still runs."""
    await gateway.client.post("/v1/sessions", json={"id": "rivers", "model": "claude-haiku-5-5"})
    first = {"message": "#sim words=100000 rate=20", "session": "rivers"}
    running = (await gateway.client.post("/v1/turns", json=first)).json()
    beside = await posted(gateway, session="rivers", on_busy="branch")
    request = (await system_log.turn(TurnKey(tenant, beside["turn"]))).request
    assert request is not None
    assert (request.model, request.parent) == ("claude-haiku-5-5", None)
    await gateway.client.post(running["links"]["cancel"])


async def test_a_session_counts_the_messages_of_all_its_turns(gateway: Gateway) -> None:
    """Those that were added and the answers; not those that a follow-up repeats."""
    history = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    first = await posted(gateway, message=None, messages=[*history, {"role": "user", "content": "#sim words=1 rate=0"}])
    await posted(gateway, session=first["session"])
    session = (await gateway.client.get(f"/v1/sessions/{first['session']}")).json()
    assert (session["turns"], session["message_count"]) == (2, 6)
    assert session["total_tokens"] == sum(session["usage"].values()) > 0
    assert session["total_cost"] == session["cost_usd"] > 0


async def test_a_renamed_session_keeps_its_position(gateway: Gateway) -> None:
    """A new title is no use of it; null takes the title away."""
    first, second = await posted(gateway), await posted(gateway)
    path = f"/v1/sessions/{first['session']}"
    before = (await gateway.client.get(path)).json()
    for title in ("Rivers \U0001f30a", "Lakes", None):
        renamed = await gateway.client.patch(path, json={"title": title})
        assert (renamed.status_code, renamed.json()) == (200, {**before, "title": title})
    listed = (await gateway.client.get("/v1/sessions")).json()["data"]
    assert [one["id"] for one in listed] == [second["session"], first["session"]]


async def test_a_duplicate_session_id_is_refused(gateway: Gateway) -> None:
    """Made, or begun by a turn: what is there stays as it was."""
    begun = (await posted(gateway))["session"]
    await gateway.client.post("/v1/sessions", json={"id": "rivers", "title": "Rivers"})
    for name in (begun, "rivers"):
        answer = await gateway.client.post("/v1/sessions", json={"id": name, "title": "Lakes"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_exists")
    assert (await gateway.client.get("/v1/sessions/rivers")).json()["title"] == "Rivers"


async def test_branches_are_the_leaves_with_their_ancestors(gateway: Gateway) -> None:
    """Newest first, by pages; every turn is on one of them."""
    root = await posted(gateway)
    session, path = root["session"], f"/v1/sessions/{root['session']}/branches"
    left = await posted(gateway, session=session, parent=root["turn"])
    right = await posted(gateway, session=session, parent=root["turn"])
    leaf = await posted(gateway, session=session)
    for limit in (1, 2):
        got = [one for page in await pages(gateway, path, "data", limit) for one in page]
        assert [(one["turn"], one["length"], one["turns"]) for one in got] == [
            (leaf["turn"], 3, [root["turn"], right["turn"], leaf["turn"]]),
            (left["turn"], 2, [root["turn"], left["turn"]]),
        ]
    assert got[0]["outcome"] == "completed"


async def test_stats_cover_the_active_sessions(gateway: Gateway) -> None:
    """With what they used by model, and which are being answered just now."""
    first = await posted(gateway, model="claude-haiku-5-5")
    second = (await gateway.client.post("/v1/turns", json={"message": "#sim words=100000 rate=20"})).json()
    told = (await gateway.client.get("/v1/sessions/stats")).json()
    used = (await gateway.client.get(f"/v1/sessions/{first['session']}")).json()
    by_model = {model["key"]: model for model in told["by_model"]}
    assert by_model["claude-haiku-5-5"]["usage"] == used["usage"]
    assert told["session_stats"] == {
        "active_sessions": 2,
        "turns": 2,
        "total_tokens": used["total_tokens"],
        "total_cost": used["total_cost"],
        "total_messages": 3,
        "models_in_use": ["claude-haiku-5-5", "claude-sonnet-5-5"],
    }
    assert (told["active_claude_sessions"], told["claude_sessions"]) == (1, [second["session"]])
    await gateway.client.post(second["links"]["cancel"])


WRONG_SESSIONS: list[dict[str, object]] = [
    {"id": ""},
    {"id": "a/b"},
    {"id": "stats"},
    {"id": "x" * 129},
    {"title": ""},
    {"title": "x" * 501},
    {"project_id": "a b"},
    {"system_prompt": "x" * 200_000},
    {"system_prompt": 7},
    {"temperature": 1},
]


@on_shared_loop
@pytest.mark.parametrize("body", WRONG_SESSIONS, ids=lambda body: str(body)[:30])
async def test_an_invalid_session_is_refused(shared_gateway: Gateway, body: dict[str, object]) -> None:
    """By the field's name, and nothing is made."""
    answer = await shared_gateway.client.post("/v1/sessions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert next(iter(body)) in answer.json()["error"]["message"]


@on_shared_loop
async def test_a_blob_reference_in_a_session_is_refused(shared_gateway: Gateway) -> None:
    """References to one large blob would become as many copies of it in each call of its turns."""
    reference = {"tailrace:blob": "0" * 64, "bytes": 100_000}
    told = {"system_prompt": [{"type": "text", "text": reference}] * 1000}
    answer = await shared_gateway.client.post("/v1/sessions", json=told)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert answer.json()["error"]["message"].startswith("The key `tailrace:blob` is reserved")


@on_shared_loop
async def test_an_unknown_model_in_a_session_is_refused(shared_gateway: Gateway) -> None:
    """Here, and not at its first turn."""
    answer = await shared_gateway.client.post("/v1/sessions", json={"model": "claude-9"})
    assert answer.json()["error"]["code"] == "model_unknown"


@on_shared_loop
async def test_the_parameter_page_is_refused(shared_gateway: Gateway) -> None:
    """Taken for the first page each time, whoever counts would never come to an end."""
    answers = [await shared_gateway.client.get("/v1/sessions", params={"page": page}) for page in ("1", "2")]
    assert [answer.status_code for answer in answers] == [200, 400]


@on_shared_loop
@pytest.mark.parametrize("session", ["nobody-has-it", "%00", "a%20b", "*", "%3E", "x" * 65, "%F0%9F%8C%8A", "..%2e"])
@pytest.mark.parametrize("suffix", ["", "/turns"])
async def test_an_unknown_session_is_not_found(shared_gateway: Gateway, session: str, suffix: str) -> None:
    """404 in the envelope, whatever the text."""
    answer = await shared_gateway.client.get(f"/v1/sessions/{session}{suffix}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


@on_shared_loop
@pytest.mark.parametrize("limit", ["0", "201", "-1", "+1", "1_0", "abc", "", "٣", "1.5", "9" * 5000])
async def test_an_invalid_limit_is_refused(shared_gateway: Gateway, limit: str) -> None:
    """From 1 to 200, in plain digits."""
    answer = await shared_gateway.client.get("/v1/sessions", params={"limit": limit})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")


@on_shared_loop
@pytest.mark.parametrize("after", ["abc", "-1", "%00", "' OR 1=1 --", "x" * 5000, "🌊"])
async def test_an_invalid_cursor_is_refused(shared_gateway: Gateway, after: str) -> None:
    """What a page did not say leads nowhere."""
    first = await posted(shared_gateway)
    for path in ("/v1/sessions", f"/v1/sessions/{first['session']}/turns"):
        answer = await shared_gateway.client.get(path, params={"after": after})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid")


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
async def test_a_session_name_that_is_a_route_is_refused(
    lone_gateway: Gateway, path: str, body: dict[str, object], headers: dict[str, str]
) -> None:
    """In whatever protocol it is named: nobody could look at it afterwards."""
    refused = await lone_gateway.client.post(path, json=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")
    assert "/v1/sessions/stats" in refused.json()["error"]["message"]
