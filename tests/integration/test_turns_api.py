"""POST /v1/turns with its idempotency keys, GET and cancel."""

import asyncio
import hashlib
from asyncio import Event
from collections import Counter
from signal import SIGCONT
from typing import Any

import httpx2
import msgspec
import pytest
from nats.aio.msg import Msg

from tailrace.features.api_reference.gateway import document
from tailrace.proto import subjects
from tailrace.proto.entries import Message, Request
from tailrace.proto.errors import FenceLost
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Claim, Claims, Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness.freeze import freeze
from tests.harness.generator_in_loop import words
from tests.harness.processes import Process, as_user
from tests.harness.readers import decode_data, read, story_of
from tests.harness.requests import post, post_until_ended
from tests.harness.sse_parser import parse
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, forget, on_shared_loop

BODY = {"message": "Why is the sky blue?"}
ONCE = {"idempotency-key": "key-1"}


async def error(gateway: Gateway, headers: Any = None, **body: object) -> tuple[int, str]:
    """Posts a turn that is refused; returns the status and the error code."""
    answer = await gateway.client.post("/v1/turns", json=body or BODY, headers=headers)
    return answer.status_code, answer.json()["error"]["code"]


async def request_of(log: TurnLog, tenant: Tenant, accepted: dict[str, Any]) -> Request:
    stored = (await log.read_entries(ScopedKey.whole(TurnKey(tenant, accepted["turn"]))))[0].entry
    assert isinstance(stored, Request)
    return stored


# POST


async def test_a_post_has_the_links_of_its_example_in_the_openapi_document(gateway: Gateway) -> None:
    accepted = await post(gateway, **BODY)
    operation = msgspec.json.decode(document())["paths"]["/v1/turns"]["post"]
    example = operation["responses"]["202"]["content"]["application/json"]["example"]
    shown = {name: path.replace(example["turn"], accepted["turn"]) for name, path in example["links"].items()}
    assert accepted["links"] == shown


async def test_a_post_stores_the_request_and_returns_links(lone_gateway: Gateway, log: TurnLog, tenant: Tenant) -> None:
    """A generator needs no database: the request entry has every field of the body."""
    answer = await lone_gateway.client.post("/v1/turns", json=BODY)
    accepted, turn = answer.json(), answer.json()["turn"]
    assert answer.status_code == 202
    assert (answer.headers["location"], answer.headers["tailrace-turn"]) == (f"/v1/turns/{turn}", turn)
    path = f"/v1/turns/{turn}"
    links = {"self": path, "events": f"{path}/events", "cancel": f"{path}/cancel"}
    assert accepted == {"turn": turn, "session": accepted["session"], "links": links}
    stored = await request_of(log, tenant, accepted)
    assert stored == Request(
        model="claude-sonnet-5-5",
        max_tokens=4096,
        messages=[Message("user", BODY["message"])],
        on_pause="continue",
        session=accepted["session"],
        owner=None,
        by=stored.by,
        body_sha256=stored.body_sha256,
        queue_position=stored.queue_position,
    )
    body = {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": [{"type": "text", "text": "hello yourself"}]},
            {"role": "user", "content": [{"type": "text", "text": "ünïcödé 🌊"}]},
        ],
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
        "on_pause": "continue",
        "on_disconnect": "grace:30",
    }
    accepted = await post(lone_gateway, **body)
    stored = await request_of(log, tenant, accepted)
    # Turns of other tests may wait before it.
    assert msgspec.to_builtins(msgspec.structs.replace(stored, queue_position=None)) == {
        "session": accepted["session"],
        "owner": None,
        "by": stored.by,
        "body_sha256": stored.body_sha256,
        **body,
    }


@pytest.mark.rule("R131")
@pytest.mark.parametrize("path", ["/v1/turns", "/v1/messages", "/v1/chat/completions", "/v1/responses"])
async def test_sampling_reaches_only_a_model_that_takes_it(gateway: Gateway, claude: str, path: str) -> None:
    """In a version of the API that has it. For another model, the response names what was removed."""

    async def ask(model: str) -> tuple[httpx2.Response, Any]:
        messages = [{"role": "user", "content": "#sim words=1 rate=0"}]
        body: dict[str, Any] = {"model": model, "temperature": 0.5}
        match path:
            case "/v1/turns":
                body = {"model": model, "messages": messages, "options": {"temperature": 0.5}}
            case "/v1/messages":
                body |= {"messages": messages, "max_tokens": 10}
            case "/v1/chat/completions":
                body |= {"messages": messages}
            case _:
                body |= {"input": messages}
        headers = {"accept": "text/event-stream"} if path == "/v1/turns" else {}
        answer = await gateway.client.post(path, json=body, headers=headers)
        async with httpx2.AsyncClient(trust_env=False) as client:
            return answer, (await client.get(f"{claude}/_sim/last")).json()

    taken, sent = await ask("claude-haiku-4-5")
    assert (taken.status_code, sent["version"], sent["body"]["temperature"]) == (200, "2023-06-01", 0.5), taken.text
    assert "tailrace-ignored" not in taken.headers
    refused, sent = await ask("claude-sonnet-5-5")
    assert (refused.status_code, sent["version"]) == (200, "2026-10-21"), refused.text
    assert "temperature" not in sent["body"]
    assert refused.headers["tailrace-ignored"] == "temperature"


@pytest.mark.parametrize(
    ("path", "fields", "ignored"),
    [
        ("/v1/chat/completions?pace=2", {"seed": 1}, "seed, pace"),
        ("/v1/chat/completions?pace=2", {"seed": 1, "stream": True}, "seed, pace"),
        ("/v1/messages?pace=2", {"max_tokens": 10, "temperature": 0.5}, "pace, temperature"),
    ],
)
async def test_one_header_names_all_that_was_ignored(
    gateway: Gateway, path: str, fields: dict[str, Any], ignored: str
) -> None:
    """A parameter of an earlier version, what the protocol does not have, and sampling that the model refuses."""
    messages = [{"role": "user", "content": "#sim words=1 rate=0"}]
    body = {"model": "claude-sonnet-5-5", "messages": messages, **fields}
    answer = await gateway.client.post(path, json=body)
    assert (answer.status_code, answer.headers["tailrace-ignored"]) == (200, ignored), answer.text


async def test_a_post_that_accepts_a_stream_is_answered_with_it(gateway: Gateway) -> None:
    """The headers and the first event name the turn. The letter case of the media type does not matter."""
    body, headers = {"message": "#sim words=5 rate=0"}, {"accept": "Text/Event-Stream"}
    answer = await gateway.client.post("/v1/turns", json=body, headers=headers)
    events, turn = parse(answer.content), answer.headers["tailrace-turn"]
    assert (answer.status_code, answer.headers["location"]) == (200, f"/v1/turns/{turn}")
    assert decode_data(events[0].raw)["turn"] == turn
    assert story_of(event.raw for event in events).text == words(5)
    assert (await gateway.client.post("/v1/turns?dialect=text", json=body, headers=headers)).text == words(5)


async def test_a_follow_up_continues_its_branch(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> None:
    """`parent` selects the branch; without it, the session's newest turn; null begins a branch without history."""
    question = "#sim words=1 rate=0 tag="
    first = await post_until_ended(gateway, message=f"{question}a")
    session = first["session"]
    left = await post_until_ended(gateway, message=f"{question}l", session=session)
    right = await post_until_ended(gateway, message=f"{question}r", parent=first["turn"])
    last = await post_until_ended(gateway, message=f"{question}z", session=session)
    root = await post_until_ended(gateway, message=f"{question}b", session=session, parent=None)
    newest = await post_until_ended(gateway, message=f"{question}c", session=session)
    elsewhere = await post_until_ended(gateway, message=f"{question}d", parent=None)
    assert {one["session"] for one in (first, left, right, last, root, newest)} == {session}
    assert elsewhere["session"] != session
    found = [await request_of(system_log, tenant, one) for one in (last, root, newest, elsewhere)]
    parents = [(right["turn"], 4), (None, 0), (root["turn"], 2), (None, 0)]
    assert [(request.parent, request.history) for request in found] == parents
    assert [one.content for one in found[0].messages if one.role == "user"] == [f"{question}{tag}" for tag in "arz"]
    record = (await gateway.client.get(last["links"]["self"])).json()
    assert record["input"] == [{"role": "user", "content": f"{question}z"}]


# Idempotency keys


@pytest.mark.rule("F6")
@pytest.mark.rule("R26")
@pytest.mark.rule("S1")
async def test_posts_with_one_key_are_one_turn(
    nats_url: str, lone_gateway: Gateway, new_gateway: NewGateway, log: TurnLog, tenant: Tenant
) -> None:
    """At any gateway and at once; another body is refused, and another tenant's key is another key."""
    second = await new_gateway(nats_url)
    other_tenant = await new_gateway(nats_url, api_keys="")
    answers = await asyncio.gather(
        *(one.client.post("/v1/turns", json=BODY, headers=ONCE) for one in (lone_gateway, second) for _ in range(25))
    )
    answers += [await lone_gateway.client.post("/v1/turns", json=BODY, headers=ONCE)]
    assert Counter((answer.status_code, answer.content) for answer in answers) == {(202, answers[0].content): 51}
    turn = answers[0].json()["turn"]
    assert len(await log.read_entries(ScopedKey.whole(TurnKey(tenant, turn)))) == 1
    assert await error(lone_gateway, ONCE, message="other") == (422, "idempotency_key_reused")
    theirs = await other_tenant.client.post("/v1/turns", json={"message": new_id()}, headers={"idempotency-key": turn})
    ours = await lone_gateway.client.post("/v1/turns", json=BODY, headers={"idempotency-key": turn})
    assert (theirs.status_code, ours.status_code) == (202, 202)
    assert theirs.json()["turn"] != ours.json()["turn"]


@pytest.mark.rule("R26")
@pytest.mark.rule("F6")
async def test_repeats_of_a_claim_without_a_turn_store_it_once(
    lone_gateway: Gateway, connection: Connection, log: TurnLog, tenant: Tenant
) -> None:
    """The gateway that had claimed the key died before its append; twenty repeats arrive at once."""
    raw = msgspec.json.encode(BODY)
    claim = Claim(TurnId(new_id()), hashlib.sha256(raw).hexdigest())
    await Claims(connection).claim(tenant, "key-1", claim)
    headers = ONCE | {"content-type": "application/json"}
    posts = (lone_gateway.client.post("/v1/turns", content=raw, headers=headers) for _ in range(20))
    answers = await asyncio.gather(*posts)
    assert Counter((answer.status_code, answer.content) for answer in answers) == {(202, answers[0].content): 20}
    assert answers[0].json()["turn"] == claim.turn
    assert len(await log.read_entries(ScopedKey.whole(TurnKey(tenant, claim.turn)))) == 1


async def test_a_repeat_in_a_session_returns_the_turn_that_makes_the_session_busy(
    gateway: Gateway, system: System, system_log: TurnLog, tenant: Tenant, persistence: Process
) -> None:
    """The first gateway appended the turn while the repeat was querying the context."""
    first = await post_until_ended(gateway, message="#sim words=1 rate=0")
    raw = msgspec.json.encode({"message": "and then?", "session": first["session"]})
    connection = await Connection.open(system.nats_url, "test")
    listening = await Connection.open(as_user(system.nats_url, subjects.PERSISTENCE), "test-persistence")
    claim = Claim(TurnId(new_id()), hashlib.sha256(raw).hexdigest())
    await Claims(connection).claim(tenant, "key-1", claim)
    is_queried = Event()

    async def on_query(_: Msg) -> None:
        is_queried.set()

    await listening.subscribe(subjects.query(tenant, "context"), on_query)
    headers = ONCE | {"content-type": "application/json"}
    freeze(persistence)
    try:
        repeat = asyncio.create_task(gateway.client.post("/v1/turns", content=raw, headers=headers))
        await asyncio.wait_for(is_queried.wait(), 5)
        owner = Writer(system_log, TurnKey(tenant, claim.turn))
        messages = [Message("user", "#sim words=1 wait=5")]
        await owner.store_request(messages=messages, session=SessionId(first["session"]), parent=first["turn"])
    finally:
        persistence.signal(SIGCONT)
    answer = await repeat
    for opened in (connection, listening):
        await opened.close()
    assert (answer.status_code, answer.json()["turn"]) == (202, claim.turn), answer.text
    await gateway.client.post(answer.json()["links"]["cancel"])


async def test_a_refused_request_does_not_use_its_key(gateway: Gateway) -> None:
    """A client may correct the body and repeat."""
    assert await error(gateway, ONCE, message="hi", session=new_id()) == (404, "session_not_found")
    accepted = await gateway.client.post("/v1/turns", json={"message": "hi"}, headers=ONCE)
    assert accepted.status_code == 202, accepted.text


@on_shared_loop
@pytest.mark.parametrize("keys", [[b""], [b"a b"], [b"x" * 201], [b"\xc3\xa4"], [b"a\tb"], [b"one", b"two"]])
async def test_an_invalid_idempotency_key_is_refused(shared_gateway: Gateway, keys: list[bytes]) -> None:
    """Ignored, it would not protect from a second turn."""
    headers = [(b"idempotency-key", key) for key in keys]
    assert await error(shared_gateway, headers) == (400, "idempotency_key_invalid")


# GET and cancel


async def test_a_record_is_the_same_from_the_log_and_from_the_database(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant
) -> None:
    """While the turn runs, after its end, and after the log has expired; a stream resumes after its `cursor`."""
    accepted = await post(gateway, message="#sim words=40 rate=60", metadata={"a": "b"})
    path = accepted["links"]["self"]

    async def find_begun_turn() -> dict[str, Any] | None:
        record: dict[str, Any] = (await gateway.client.get(path)).json()
        return record if record["text"] else None

    running = await until(find_begun_turn)
    assert running is not None
    rest = await read(gateway.client, accepted["turn"], running["cursor"])
    ended = (await gateway.client.get(path)).json()
    assert (running["outcome"], running["ended_at"]) == ("running", None)
    assert running["text"] + story_of(frame.sent for frame in rest.frames).text == ended["text"] == words(40)
    assert (ended["outcome"], ended["metadata"], ended["attempts"]) == ("completed", {"a": "b"}, 1)
    assert ended["cursor"] == rest.frames[-1].seq
    assert (await gateway.client.post(accepted["links"]["cancel"])).json() == ended
    await forget(gateway, system_log, TurnKey(tenant, accepted["turn"]))
    assert (await gateway.client.get(path)).json() == ended
    assert (await gateway.client.post(accepted["links"]["cancel"])).json() == ended


@pytest.mark.rule("F28")
async def test_a_turn_that_is_written_at_full_speed_can_be_cancelled(
    lone_gateway: Gateway, log: TurnLog, key: TurnKey
) -> None:
    """Its writer never ends by itself, and wins most races for the next sequence, but not for long."""
    writer = Writer(log, key)
    await writer.open("a")

    async def write_on() -> None:
        while True:
            await writer.store_texts("a")

    writing = asyncio.create_task(write_on())
    cancelled = (await lone_gateway.client.post(f"/v1/turns/{key.turn}/cancel")).json()
    with pytest.raises(FenceLost):
        await writing
    assert cancelled["outcome"] == "cancelled"
    assert (await log.read_turn(ScopedKey.whole(key))).text == cancelled["text"]
