"""POST /v1/turns, GET and cancel: a turn is accepted once, looked at whole, and ended by whoever asks first."""

import asyncio
import hashlib
from asyncio import Event
from collections import Counter
from pathlib import Path
from signal import SIGCONT, SIGKILL
from typing import Any

import httpx2
import msgspec
import pytest
from nats.aio.msg import Msg

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto import subjects
from tailrace.proto.entries import Message, Request
from tailrace.proto.errors import FenceLost
from tailrace.proto.ids import SessionId, Tenant, TurnId, new_id
from tailrace.proto.nats import Claim, Claims, Connection, TurnLog
from tailrace.proto.subjects import TurnKey
from tests.harness import processes
from tests.harness.freeze import freeze
from tests.harness.lossy_link import Losing
from tests.harness.processes import Process, as_user
from tests.harness.readers import data, read, told, whole
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys, forget, on_shared_loop

BODY = {"message": "Why is the sky blue?"}


async def stats(claude: str) -> dict[str, Any]:
    async with httpx2.AsyncClient(trust_env=False) as client:
        seen: dict[str, Any] = (await client.get(f"{claude}/_sim/stats")).json()
        return seen


async def posted(gateway: Gateway, **body: object) -> dict[str, Any]:
    answer = await gateway.client.post("/v1/turns", json=body)
    assert answer.status_code == 202, answer.text
    accepted: dict[str, Any] = answer.json()
    return accepted


async def ended(gateway: Gateway, turn: str) -> dict[str, Any]:
    async def is_ended() -> dict[str, Any] | None:
        seen: dict[str, Any] = (await gateway.client.get(f"/v1/turns/{turn}")).json()
        return seen if seen["outcome"] != "running" else None

    over: dict[str, Any] | None = await until(is_ended)
    assert over is not None
    return over


async def test_a_post_is_answered_with_where_to_go_on(lone_gateway: Gateway, log: TurnLog, tenant: Tenant) -> None:
    """202, the turn's id three times over, and links that lead somewhere; the request is in the log by then."""
    answer = await lone_gateway.client.post("/v1/turns", json=BODY)
    accepted = answer.json()
    turn = accepted["turn"]
    assert answer.status_code == 202
    assert (answer.headers["location"], answer.headers["tailrace-turn"]) == (f"/v1/turns/{turn}", turn)
    assert accepted == {
        "turn": turn,
        "session": accepted["session"],
        "links": {
            "self": f"/v1/turns/{turn}",
            "events": f"/v1/turns/{turn}/events",
            "cancel": f"/v1/turns/{turn}/cancel",
        },
    }
    assert len(await log.replay(TurnKey(tenant, turn))) == 1
    assert (await lone_gateway.client.get(accepted["links"]["self"])).json()["outcome"] == "running"
    assert (await lone_gateway.client.post(accepted["links"]["cancel"])).json()["outcome"] == "cancelled"
    assert (await lone_gateway.client.get(accepted["links"]["events"])).status_code == 200


async def test_every_field_of_the_body_is_in_the_log(lone_gateway: Gateway, log: TurnLog, tenant: Tenant) -> None:
    """A generator needs no database: what was asked is in the request entry, unchanged."""
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "hello yourself"}]},
        {"role": "user", "content": [{"type": "text", "text": "ünïcödé 🌊"}]},
    ]
    body = {
        "messages": messages,
        "model": "claude-opus-5-5",
        "max_tokens": 77,
        "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        "tools": [{"name": "look", "input_schema": {"type": "object"}}],
        "options": {"thinking": {"type": "adaptive"}, "stop_sequences": ["END"]},
        "betas": ["context-1m-2025-08-07"],
        "api_version": "2023-06-01",
        "project": "tailrace",
        "metadata": {"user": "u-1"},
        "on_interrupt": "restart",
        "on_disconnect": "grace:30",
    }
    accepted = await posted(lone_gateway, **body)
    stored = (await log.replay(TurnKey(tenant, accepted["turn"])))[0].entry
    assert isinstance(stored, Request)
    entry = {"session": accepted["session"], "by": stored.by, **body}
    assert msgspec.to_builtins(stored) == entry


async def test_a_short_message_is_a_users_message_with_the_defaults(
    lone_gateway: Gateway, log: TurnLog, tenant: Tenant
) -> None:
    """`message` is the short form of `messages`."""
    accepted = await posted(lone_gateway, message="hi")
    stored = (await log.replay(TurnKey(tenant, accepted["turn"])))[0].entry
    assert isinstance(stored, Request)
    assert stored == Request(
        model="claude-sonnet-5-5",
        max_tokens=4096,
        messages=[Message("user", "hi")],
        session=accepted["session"],
        by=stored.by,
    )


async def test_a_post_that_accepts_a_stream_is_answered_with_it(gateway: Gateway) -> None:
    """One request is enough: the stream names its turn in the headers and in its first frame."""
    body = {"message": "#sim words=5 rate=0"}
    headers = {"accept": "text/event-stream"}
    answer = await gateway.client.post("/v1/turns", json=body, headers=headers)
    events = parse(answer.content)
    assert answer.status_code == 200
    assert answer.headers["location"] == f"/v1/turns/{answer.headers['tailrace-turn']}"
    assert data(events[0].raw)["turn"] == answer.headers["tailrace-turn"]
    assert told(event.raw for event in events).text == "w000000 w000001 w000002 w000003 w000004"
    text = await gateway.client.post("/v1/turns?dialect=text", json=body, headers=headers)
    assert text.text == "w000000 w000001 w000002 w000003 w000004"


async def test_a_follow_up_goes_on_from_its_branch(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> None:
    """A parent names the branch; without one it is the session's last turn. Other branches are not in the history."""
    first = await posted(gateway, message="#sim words=1 rate=0 tag=a")
    session = first["session"]
    await ended(gateway, first["turn"])
    left = await posted(gateway, message="#sim words=1 rate=0 tag=l", session=session)
    await ended(gateway, left["turn"])
    right = await posted(gateway, message="#sim words=1 rate=0 tag=r", parent=first["turn"])
    await ended(gateway, right["turn"])
    last = await posted(gateway, message="#sim words=1 rate=0 tag=z", session=session)
    asked = (await system_log.turn(TurnKey(tenant, last["turn"]))).request
    assert asked is not None
    assert {one["session"] for one in (first, left, right, last)} == {session}
    assert (asked.parent, asked.history) == (right["turn"], 4)
    assert [message.content for message in asked.messages if message.role == "user"] == [
        f"#sim words=1 rate=0 tag={tag}" for tag in "arz"
    ]
    assert (await ended(gateway, last["turn"]))["input"] == [
        {"role": "user", "content": "#sim words=1 rate=0 tag=z"},
    ]


async def test_a_parent_of_null_is_the_beginning_of_its_session(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """An edit of the first question is a branch without history. Without `parent` the newest turn is gone on from."""
    first = await posted(gateway, message="#sim words=1 rate=0 tag=a")
    session = first["session"]
    await ended(gateway, first["turn"])
    edit = await posted(gateway, message="#sim words=1 rate=0 tag=b", session=session, parent=None)
    await ended(gateway, edit["turn"])
    newest = await posted(gateway, message="#sim words=1 rate=0 tag=c", session=session)
    elsewhere = await posted(gateway, message="#sim words=1 rate=0", parent=None)
    asked = [(await system_log.turn(TurnKey(tenant, one["turn"]))).request for one in (edit, newest, elsewhere)]
    assert [(one.parent, one.history) for one in asked if one] == [(None, 0), (edit["turn"], 2), (None, 0)]
    assert edit["session"] == newest["session"] == session != elsewhere["session"]


async def test_a_beginning_of_a_session_that_is_not_there_is_not_found(gateway: Gateway) -> None:
    """Nobody names a session but the server; also not by beginning a branch of it."""
    answer = await gateway.client.post("/v1/turns", json={"message": "hi", "session": "nobody-has-it", "parent": None})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


async def test_a_follow_up_to_a_turn_that_is_still_running_is_refused(gateway: Gateway) -> None:
    """There is no answer to go on from yet."""
    first = await posted(gateway, message="#sim words=100 rate=20")
    answer = await gateway.client.post("/v1/turns", json={"message": "and?", "session": first["session"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "session_busy")
    await gateway.client.post(first["links"]["cancel"])


@pytest.mark.rule("F6")
async def test_a_repeated_key_is_the_same_turn(lone_gateway: Gateway, log: TurnLog, tenant: Tenant) -> None:
    """A client that heard no answer asks again, and neither asks twice nor pays twice."""
    headers = {"idempotency-key": "key-1"}
    answers = [await lone_gateway.client.post("/v1/turns", json=BODY, headers=headers) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert {answer.content for answer in answers} == {answers[0].content}
    assert len(await log.replay(TurnKey(tenant, answers[0].json()["turn"]))) == 1


@pytest.mark.rule("R26")
async def test_a_key_used_with_another_body_is_refused(lone_gateway: Gateway) -> None:
    """The client has a mistake, and either answer would hide it."""
    headers = {"idempotency-key": "key-1"}
    await lone_gateway.client.post("/v1/turns", json=BODY, headers=headers)
    answer = await lone_gateway.client.post("/v1/turns", json={"message": "other"}, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "idempotency_key_reused")


async def test_fifty_posts_of_one_key_at_once_are_one_turn(
    nats_url: str, lone_gateway: Gateway, new_gateway: NewGateway, log: TurnLog, tenant: Tenant
) -> None:
    """Whichever gateway is first: one request entry, one session, for everybody."""
    other = await new_gateway(nats_url)
    headers = {"idempotency-key": "key-1"}
    answers = await asyncio.gather(
        *(
            gateway.client.post("/v1/turns", json=BODY, headers=headers)
            for gateway in (lone_gateway, other)
            for _ in range(25)
        )
    )
    assert Counter((answer.status_code, answer.content) for answer in answers) == {(202, answers[0].content): 50}
    assert len(await log.replay(TurnKey(tenant, answers[0].json()["turn"]))) == 1


@pytest.mark.rule("F6")
async def test_a_gateway_that_is_killed_before_it_answers_has_asked_once(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, tenant: Tenant, tmp_path: Path
) -> None:
    """FAULTS F6: the request is stored and its client heard nothing; the POST with the same key gets that very turn."""

    async def asked() -> dict[str, int]:
        info = await own_connection.jetstream.stream_info(subjects.STREAM, subjects_filter=f"turns.{tenant}.>")
        return info.state.subjects or {}

    headers = {"idempotency-key": "once", "authorization": f"Bearer {KEY}"}
    environ = {"TAILRACE_API_KEYS": api_keys(tenant)}
    async with (
        Losing(own_server.url, share=1) as losing,
        processes.gateway(tmp_path, losing.url, **environ) as killed,
        httpx2.AsyncClient(base_url=killed.url, trust_env=False) as client,
    ):
        posting = asyncio.create_task(client.post("/v1/turns", json=BODY, headers=headers))
        await until(asked)
        await killed.stop(SIGKILL)
        with pytest.raises(httpx2.HTTPError):
            await posting
    gateway = await new_gateway(own_server.url)
    answers = [await gateway.client.post("/v1/turns", json=BODY, headers=headers) for _ in range(2)]
    assert {answer.status_code for answer in answers} == {202}
    [turn] = {answer.json()["turn"] for answer in answers}
    assert await asked() == {f"turns.{tenant}.{turn}.request": 1}


async def test_a_repeat_in_a_session_gets_the_turn_that_made_the_session_busy(
    gateway: Gateway, system: System, system_log: TurnLog, tenant: Tenant, persistence: Process
) -> None:
    """Its first owner appended while the repeat was finding out where to go on: that very turn is what it asked for."""
    first = await posted(gateway, message="#sim words=1 rate=0")
    await ended(gateway, first["turn"])
    raw = msgspec.json.encode({"message": "and then?", "session": first["session"]})
    connection = await Connection.open(system.nats_url, "test")
    listening = await Connection.open(as_user(system.nats_url, subjects.PERSISTENCE), "test-persistence")
    claim = Claim(TurnId(new_id()), hashlib.sha256(raw).hexdigest())
    await Claims(connection).claim(tenant, "key-1", claim)
    asked = Event()

    async def heard(_: Msg) -> None:
        asked.set()

    await listening.subscribe(subjects.query(tenant, "context"), heard)
    headers = {"idempotency-key": "key-1", "content-type": "application/json"}
    freeze(persistence)
    try:
        repeat = asyncio.create_task(gateway.client.post("/v1/turns", content=raw, headers=headers))
        await asyncio.wait_for(asked.wait(), 5)
        owner = Writer(system_log, TurnKey(tenant, claim.turn))
        await owner.ask(
            messages=[Message("user", "#sim words=1 wait=5")], session=SessionId(first["session"]), parent=first["turn"]
        )
    finally:
        persistence.signal(SIGCONT)
    answer = await repeat
    for opened in (connection, listening):
        await opened.close()
    assert (answer.status_code, answer.json()["turn"]) == (202, claim.turn), answer.text
    await gateway.client.post(answer.json()["links"]["cancel"])


async def test_what_is_refused_uses_up_no_key(gateway: Gateway) -> None:
    """A corrected body is a new try, under the same key."""
    headers = {"idempotency-key": "key-1"}
    refused = await gateway.client.post("/v1/turns", json={"message": "hi", "session": new_id()}, headers=headers)
    assert refused.status_code == 404
    accepted = await gateway.client.post("/v1/turns", json={"message": "hi"}, headers=headers)
    assert accepted.status_code == 202, accepted.text


async def test_a_conversation_that_is_too_long_says_what_to_do(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """Each body is within its limit, and the history is not within the server's: many texts, and none of them long."""
    session = None
    texts = ["x" * 60_000] * 58 + ["\n#sim words=1 rate=0"]
    content = [{"type": "text", "text": text} for text in texts]
    for _ in range(3):
        body = {"messages": [{"role": "user", "content": content}], **({"session": session} if session else {})}
        answer = await gateway.client.post("/v1/turns", json=body)
        if answer.status_code != 202:
            break
        session = answer.json()["session"]
        await read(gateway.client, answer.json()["turn"])
    assert answer.status_code == 413
    assert "new session" in answer.json()["error"]["message"]


@pytest.mark.rule("R26")
@pytest.mark.rule("F6")
async def test_those_who_find_a_claim_without_a_turn_ask_in_its_place_once(
    lone_gateway: Gateway, connection: Connection, log: TurnLog, tenant: Tenant
) -> None:
    """The claim's first owner died between the claim and the append; all who repeat the POST come at once."""
    raw = msgspec.json.encode(BODY)
    claim = Claim(TurnId(new_id()), hashlib.sha256(raw).hexdigest())
    await Claims(connection).claim(tenant, "key-1", claim)
    headers = {"idempotency-key": "key-1", "content-type": "application/json"}
    posts = (lone_gateway.client.post("/v1/turns", content=raw, headers=headers) for _ in range(20))
    answers = await asyncio.gather(*posts)
    assert Counter((answer.status_code, answer.content) for answer in answers) == {(202, answers[0].content): 20}
    assert answers[0].json()["turn"] == claim.turn
    assert len(await log.replay(TurnKey(tenant, claim.turn))) == 1


@pytest.mark.rule("S1")
async def test_a_key_is_the_tenants_own(nats_url: str, lone_gateway: Gateway, new_gateway: NewGateway) -> None:
    """Another tenant's use of the same key is nobody's business, not even by a 422."""
    other = await new_gateway(nats_url, api_keys="")
    headers = {"idempotency-key": new_id()}
    first = await lone_gateway.client.post("/v1/turns", json=BODY, headers=headers)
    second = await other.client.post("/v1/turns", json={"message": "something else"}, headers=headers)
    assert (first.status_code, second.status_code) == (202, 202)
    assert first.json()["turn"] != second.json()["turn"]


@on_shared_loop
@pytest.mark.parametrize("key", [b"", b"a b", b"x" * 201, b"\xc3\xa4", b"a\tb"])
async def test_a_bad_idempotency_key_is_refused(shared_gateway: Gateway, key: bytes) -> None:
    """Ignoring it would lose the very thing that the client asked for."""
    answer = await shared_gateway.client.post("/v1/turns", json=BODY, headers=[(b"idempotency-key", key)])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_invalid")


@on_shared_loop
async def test_of_two_idempotency_keys_neither_is_taken(shared_gateway: Gateway) -> None:
    """Whatever stands between may have added one: the client would repeat under a key that was not the one."""
    headers = [(b"idempotency-key", b"one"), (b"idempotency-key", b"two")]
    answer = await shared_gateway.client.post("/v1/turns", json=BODY, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "idempotency_key_invalid")


async def test_a_turn_can_be_looked_at_while_it_runs_after_its_end_and_after_the_log_lost_it(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """The same record whoever answers, the fold or the database; `cursor` is where a stream goes on from it."""
    accepted = await posted(gateway, message="#sim words=40 rate=60", metadata={"a": "b"})
    turn, key = accepted["turn"], TurnKey(tenant, accepted["turn"])

    async def says_something() -> dict[str, Any] | None:
        seen: dict[str, Any] = (await gateway.client.get(f"/v1/turns/{turn}")).json()
        return seen if seen["text"] else None

    running = await until(says_something)
    rest = await read(gateway.client, turn, running["cursor"])
    over = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    await forget(gateway, system_log, key)
    lost = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    assert (running["outcome"], running["ended_at"]) == ("running", None)
    assert running["text"] + told(frame.sent for frame in rest.frames).text == over["text"]
    assert over["text"] == " ".join(f"w{n:06}" for n in range(40))
    assert (over["outcome"], over["metadata"], over["attempts"]) == ("completed", {"a": "b"}, 1)
    assert over["cursor"] == rest.frames[-1].seq
    assert lost == over


async def test_a_running_turn_that_is_cancelled_stops_the_model(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, claude: str
) -> None:
    """The connection to the model is closed, which stops the bill; what was said stays."""
    before = (await stats(claude))["streams_aborted"]
    accepted = await posted(gateway, message="#sim words=5000 rate=50")
    first = await read(gateway.client, accepted["turn"], most=5)
    cancelled = (await gateway.client.post(accepted["links"]["cancel"])).json()
    rest = await read(gateway.client, accepted["turn"], first.frames[-1].seq)

    async def is_aborted() -> bool:
        return bool((await stats(claude))["streams_aborted"] == before + 1)

    await until(is_aborted)
    told_all = told(frame.sent for frame in (*first.frames, *rest.frames))
    assert (told_all.outcome, told_all.text) == ("cancelled", cancelled["text"])
    assert cancelled["text"].startswith("w000000 w000001")
    assert cancelled == (await gateway.client.get(f"/v1/turns/{accepted['turn']}")).json()
    assert cancelled["ended_at"] > cancelled["asked_at"]
    entries = [stored.entry for stored in await whole(system_log, TurnKey(tenant, accepted["turn"]))]
    assert [type(entry).__name__ for entry in entries].count("End") == 1


async def test_a_turn_that_no_generator_has_yet_can_be_cancelled(
    lone_gateway: Gateway, log: TurnLog, tenant: Tenant
) -> None:
    """Cancelling is an append, and needs nobody's help."""
    accepted = await posted(lone_gateway, **BODY)
    cancelled = (await lone_gateway.client.post(accepted["links"]["cancel"])).json()
    again = (await lone_gateway.client.post(accepted["links"]["cancel"])).json()
    assert (cancelled["outcome"], cancelled["text"], cancelled["attempts"]) == ("cancelled", "", 0)
    assert again == cancelled
    assert len(await log.replay(TurnKey(tenant, accepted["turn"]))) == 2


@pytest.mark.rule("R22")
async def test_cancelling_what_has_ended_changes_nothing(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> None:
    """Whoever was first has ended the turn; the answer says how. Also when only the database remembers it."""
    accepted = await posted(gateway, message="#sim words=3 rate=0")
    over = await ended(gateway, accepted["turn"])
    assert (await gateway.client.post(accepted["links"]["cancel"])).json() == over
    await forget(gateway, system_log, TurnKey(tenant, accepted["turn"]))
    assert (await gateway.client.post(accepted["links"]["cancel"])).json() == over


@pytest.mark.rule("F28")
async def test_a_turn_that_is_written_at_full_speed_can_be_cancelled(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """Its writer, which here never ends by itself, wins most races for the next sequence, and not for long."""
    writer = Writer(log, key)
    await writer.open("a")

    async def write_on() -> None:
        while True:
            await writer.say("a")

    writing = asyncio.create_task(write_on())
    cancelled = (await lone_gateway.client.post(f"/v1/turns/{key.turn}/cancel")).json()
    with pytest.raises(FenceLost):
        await writing
    assert cancelled["outcome"] == "cancelled"
    assert (await log.turn(key)).text == cancelled["text"]


async def test_two_who_cancel_at_once_see_one_end(lone_gateway: Gateway, log: TurnLog, key: TurnKey) -> None:
    """Promise 3: one end, whoever writes it."""
    await Writer(log, key).open("a")
    answers = await asyncio.gather(*(lone_gateway.client.post(f"/v1/turns/{key.turn}/cancel") for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert {answer.content for answer in answers} == {answers[0].content}
    entries = [stored.entry for stored in await log.replay(key)]
    assert [type(entry).__name__ for entry in entries].count("End") == 1
