"""A request that is repeated after its turn has ended: every derived idempotency key with every cause of an end."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, get_args

import httpx2
import pytest

from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.entries import NOT_STOPPED, CancelCause
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness.generator_in_loop import read_stats
from tests.harness.readers import is_read, read
from tests.harness.until import until
from tests.integration.conftest import Gateway

pytestmark = pytest.mark.rule("R26")

AUTO = {"idempotency-key": "auto"}
EVENTS = {"accept": "text/event-stream"}
SLOW = "words=2000 rate=20"

Result = Literal["same turn", "new turn", "turn_cancelled", "turn_deleted"]


def messages(line: str) -> dict[str, Any]:
    return {"model": "claude-haiku-5-5", "max_tokens": 900, "messages": [{"role": "user", "content": line}]}


def response(line: str) -> dict[str, Any]:
    return {"model": "claude-haiku-5-5", "input": line}


def chat(line: str) -> dict[str, Any]:
    return {"id": new_id(), "messages": [{"id": "u1", "role": "user", "parts": [{"type": "text", "text": line}]}]}


class Client(NamedTuple):
    """How a client sends its request, and how it repeats it."""

    path: str
    body: Callable[[str], dict[str, Any]]
    headers: Callable[[int], dict[str, str]]
    """The headers of repetition N; 0: of the first request."""
    forms: tuple[dict[str, Any], ...] = ({"stream": True}, {})
    """The fields of the first request and the first repetition, and of the second repetition."""
    loses: bool = False
    """Whether the connection of the first request is lost before the turn ends."""


# The key of a counted request is derived from its whole body.
STREAM = ({"stream": True},)


def auto(_: int) -> dict[str, str]:
    return AUTO


def counted(number: int) -> dict[str, str]:
    return {"x-stainless-retry-count": str(number)}


def claude_code() -> Callable[[int], dict[str, str]]:
    headers = {"x-claude-code-session-id": new_id()}
    return lambda _: headers


CLIENTS = {
    "Claude Code": Client("/v1/messages", messages, claude_code()),
    "auto, messages": Client("/v1/messages", messages, auto),
    "auto, chat": Client("/v1/chat/completions", messages, auto),
    "auto, responses": Client("/v1/responses", response, auto),
    "auto, AI SDK": Client("/api/chat", chat, auto, ({},)),
    "auto, turns": Client("/v1/turns", lambda line: {"message": line}, lambda _: AUTO | EVENTS, ({},)),
    "counted, messages": Client("/v1/messages", messages, counted, STREAM, loses=True),
    "counted, chat": Client("/v1/chat/completions", messages, counted, STREAM, loses=True),
    "counted, responses": Client("/v1/responses", response, counted, STREAM, loses=True),
}


class Started(NamedTuple):
    """A turn of a client that still reads it."""

    gateway: Gateway
    log: TurnLog
    tenant: Tenant
    turn: str
    session: str

    async def is_unread(self) -> bool:
        return not await is_read(self.log, TurnKey(self.tenant, TurnId(self.turn)))

    async def post(self, path: str) -> None:
        (await self.gateway.client.post(path)).raise_for_status()

    async def interrupt(self) -> None:
        body = {"message": "Hi\n#sim words=3", "session": self.session, "on_busy": "interrupt"}
        await read(self.gateway.client, (await self.gateway.client.post("/v1/turns", json=body)).json()["turn"])

    async def steer(self) -> None:
        path = f"/v1/turns/{self.turn}/steer"
        steered = await self.gateway.client.post(path, json={"message": "Hi\n#sim words=3"})
        await read(self.gateway.client, steered.json()["turn"])

    async def delete(self, path: str) -> None:
        (await self.gateway.client.delete(path)).raise_for_status()

    async def cancel(self, cause: CancelCause) -> None:
        await cancel(self.log, ScopedKey.whole(TurnKey(self.tenant, TurnId(self.turn))), cause)


async def complete(started: Started) -> None:
    await read(started.gateway.client, started.turn)


ENDS: dict[str, tuple[str, Callable[[Started], Awaitable[None]], Result]] = {
    # So slow that its connection can be lost before its end.
    "completed": ("words=20 rate=40", complete, "same turn"),
    "failed": ("words=3 fault=529x5", complete, "new turn"),
    "request": (SLOW, lambda one: one.post(f"/v1/turns/{one.turn}/cancel"), "turn_cancelled"),
    "session": (SLOW, lambda one: one.post(f"/v1/sessions/{one.session}/cancel"), "turn_cancelled"),
    "on_busy": (SLOW, lambda one: one.interrupt(), "turn_cancelled"),
    "batch": (SLOW, lambda one: one.cancel("batch"), "turn_cancelled"),
    "deletion": (SLOW, lambda one: one.cancel("deletion"), "turn_deleted"),
    "deleted turn": (SLOW, lambda one: one.delete(f"/v1/turns/{one.turn}"), "turn_deleted"),
    "deleted session": (SLOW, lambda one: one.delete(f"/v1/sessions/{one.session}"), "turn_deleted"),
    "on_disconnect": (SLOW, lambda one: one.cancel("on_disconnect"), "new turn"),
    "steer": (SLOW, lambda one: one.steer(), "same turn"),
}


async def turns_of(gateway: Gateway) -> list[str]:
    page = (await gateway.client.get("/v1/turns")).json()
    return [one["turn"] for one in page["data"]]


def error_of(answer: httpx2.Response) -> dict[str, Any]:
    """Returns the error in the envelope of the route."""
    body = answer.json()
    if answer.request.url.path == "/v1/messages":
        assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", CLIENTS)
async def test_a_request_repeated_after_the_end_of_its_turn(
    gateway: Gateway, system_log: TurnLog, tenant: Tenant, claude: str, name: str, end: str
) -> None:
    """A stop stays a stop: the repetition calls no model and creates no turn, with and without a stream."""
    client, (line, finish, expected) = CLIENTS[name], ENDS[end]
    body = client.body(f"#sim {line}\n{new_id()}")
    first = body | client.forms[0]
    async with gateway.client.stream("POST", client.path, json=first, headers=client.headers(0)) as answer:
        turn = answer.headers["tailrace-turn"]
        session = (await gateway.client.get(f"/v1/turns/{turn}")).json()["session"]
        started = Started(gateway, system_log, tenant, turn, session)
        if not client.loses:
            await finish(started)
            await answer.aread()
    if client.loses:
        await until(started.is_unread)
        await finish(started)
    calls, turns = (await read_stats(claude))["calls"], await turns_of(gateway)
    for number, fields in enumerate(client.forms, 1):
        if expected in ("turn_cancelled", "turn_deleted"):
            again = await gateway.client.post(client.path, json=body | fields, headers=client.headers(number))
            error = error_of(again)
            assert (again.status_code, error["code"]) == (410, expected), again.text
            assert turn in error["message"]
            assert again.headers["x-should-retry"] == "false"
            continue
        headers = client.headers(number)
        async with gateway.client.stream("POST", client.path, json=first, headers=headers) as again:
            assert (again.headers["tailrace-turn"] == turn) == (expected == "same turn")
        if expected == "new turn":
            await gateway.client.post(f"/v1/turns/{again.headers['tailrace-turn']}/cancel")
            return
    assert ((await read_stats(claude))["calls"], await turns_of(gateway)) == (calls, turns)


OTHERS: dict[str, tuple[dict[str, str], dict[str, Any], dict[str, str]]] = {
    # The headers of the stopped request; the fields and the headers in which the other one differs.
    "Claude Code, another session": ({"x-claude-code-session-id": "one"}, {}, {"x-claude-code-session-id": "two"}),
    "Claude Code, another subagent": ({"x-claude-code-session-id": "one"}, {}, {"x-claude-code-agent-id": "sub"}),
    "auto, another user": (AUTO, {"metadata": {"user_id": "ann"}}, {}),
    "auto, another session": (AUTO, {}, {"x-session-id": "other"}),
    "a key of its own": (AUTO, {}, {"idempotency-key": "own"}),
    "no key": ({}, {}, {}),
    "first request of an SDK": (counted(0), {}, {}),
}


@pytest.mark.parametrize("is_deleted", [False, True])
@pytest.mark.parametrize("name", OTHERS)
async def test_a_stop_refuses_no_other_request(gateway: Gateway, claude: str, name: str, *, is_deleted: bool) -> None:
    """Of another user, another session, or a client that asks the same again on purpose."""
    headers, fields, other = OTHERS[name]
    body = messages(f"#sim {SLOW}\n{new_id()}") | {"stream": True}
    async with gateway.client.stream("POST", "/v1/messages", json=body, headers=headers) as answer:
        turn = answer.headers["tailrace-turn"]
        path = f"/v1/turns/{turn}"
        stopped = await (gateway.client.delete(path) if is_deleted else gateway.client.post(f"{path}/cancel"))
        stopped.raise_for_status()
    async with gateway.client.stream("POST", "/v1/messages", json=body | fields, headers=headers | other) as again:
        assert again.status_code == 200, await again.aread()
        assert again.headers["tailrace-turn"] != turn
    await gateway.client.post(f"/v1/turns/{again.headers['tailrace-turn']}/cancel")


def test_every_cause_of_a_cancellation_is_in_the_table() -> None:
    assert set(get_args(CancelCause)) <= set(ENDS)
    assert {cause for cause in get_args(CancelCause) if cause in NOT_STOPPED} == {"on_disconnect", "steer"}
