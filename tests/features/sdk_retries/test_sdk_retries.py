"""Repetitions that an SDK counts in its header: which of them get the turn of the first request."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import pytest

from tailrace.features.sdk_retries import gateway as sdk_retries
from tailrace.features.sdk_retries.gateway import (
    ATTEMPT_COUNT,
    REQUEST_ID,
    RETRY_COUNT,
    SUBSCRIBE_WAIT_S,
    UNCOUNTED_AGE_MIN,
)
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Claim, Claims, Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.subjects import CLAIMS_STREAM
from tests.harness import jwts
from tests.harness.readers import is_read, read
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway, api_keys

pytestmark = pytest.mark.rule("R115")

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
# The answer takes longer than the test.
SLOW = "words=200 rate=20"
OTHER_KEY = "another key of the tenant"


def question(line: str = SLOW, *, stream: bool = True) -> dict[str, Any]:
    """Returns the body of a new question."""
    messages = [{"role": "user", "content": f"#sim {line}\n{new_id()}"}]
    return {"model": "claude-haiku-5-5", "max_tokens": 900, "messages": messages, "stream": stream}


class Client(NamedTuple):
    """A client whose SDK counts its repetitions."""

    gateway: Gateway
    log: TurnLog
    tenant: Tenant

    @asynccontextmanager
    async def open(self, body: dict[str, Any], count: object, path: str = CHAT, **headers: str) -> AsyncIterator[str]:
        """Sends the request, and disconnects at the end of the block. Yields its turn."""
        headers = headers if count is None else {RETRY_COUNT: str(count), **headers}
        async with self.gateway.client.stream("POST", path, json=body, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            yield response.headers["tailrace-turn"]

    async def lose(self, body: dict[str, Any], count: object = 0, path: str = CHAT, **headers: str) -> str:
        """Sends the request and disconnects. Returns its turn when no gateway has readers of it."""
        async with self.open(body, count, path, **headers) as turn:
            pass
        key = TurnKey(self.tenant, TurnId(turn))

        async def is_unread() -> bool:
            return not await is_read(self.log, key)

        await until(is_unread)
        return turn

    async def receive(self, body: dict[str, Any], count: object) -> str:
        """Sends the request and reads the whole answer. Returns its turn."""
        answer = await self.gateway.client.post(CHAT, json=body, headers={RETRY_COUNT: str(count)})
        assert answer.status_code == 200, answer.text
        return answer.headers["tailrace-turn"]


@pytest.fixture
def client(gateway: Gateway, system_log: TurnLog, tenant: Tenant) -> Client:
    return Client(gateway, system_log, tenant)


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_repetition_gets_the_turn_of_the_first_request(
    client: Client, second_gateway: Gateway, path: str
) -> None:
    """At any gateway, and each repetition."""
    body = question()
    first = await client.lose(body, path=path)
    assert await client._replace(gateway=second_gateway).lose(body, 1, path) == first
    assert await client.lose(body, 2, path) == first


async def test_equal_first_requests_are_different_turns(client: Client) -> None:
    """A repetition gets the turn of the last one."""
    body = question()
    turns = [await client.lose(body) for _ in range(3)]
    assert len({*turns}) == 3
    assert await client.lose(body, 1) == turns[-1]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_repetition_does_not_get_an_answer_that_was_delivered(client: Client, *, stream: bool) -> None:
    """Its own first request never arrived."""
    body = question("words=3 rate=0", stream=stream)
    turns = [await client.receive(body, count) for count in (0, 1, 1)]
    assert len({*turns}) == 3


async def test_a_delivered_answer_does_not_remove_the_claim_of_a_later_request(client: Client) -> None:
    body = question("words=20 rate=20")
    async with client.gateway.client.stream("POST", CHAT, json=body, headers={RETRY_COUNT: "0"}) as response:
        later = await client.lose(body)
        await response.aread()
    assert await client.receive(body, 1) == later != response.headers["tailrace-turn"]


async def test_a_repetition_while_another_client_reads_the_turn_gets_a_new_one(
    client: Client, second_gateway: Gateway
) -> None:
    body = question()
    async with client._replace(gateway=second_gateway).open(body, 0) as first:
        assert await client.lose(body, 1) != first


async def test_of_two_concurrent_repetitions_one_gets_the_turn(client: Client, second_gateway: Gateway) -> None:
    """Two clients had sent equal requests, and one gateway was killed with both."""
    body = question()
    first = await client.lose(body)
    clients = [client, client._replace(gateway=second_gateway)] * 2
    turns = await asyncio.gather(*(one.lose(body, 1) for one in clients))
    assert turns.count(first) == 1
    assert len({*turns}) == len(turns)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_a_turn_that_failed_or_lost_its_readers_is_not_reused(client: Client, how: str) -> None:
    body = question("words=9 rate=0 wait=0.1 fault=error@1x1" if how == "failed" else SLOW) | {"on_interrupt": "fail"}
    first = await client.lose(body)
    if how == "cancelled":
        await cancel(client.log, ScopedKey.whole(TurnKey(client.tenant, TurnId(first))), "on_disconnect")
    await read(client.gateway.client, first)
    assert (await client.gateway.client.get(f"/v1/turns/{first}")).json()["outcome"] == how
    assert await client.lose(body, 1) != first


async def test_a_repetition_of_a_refused_request_does_not_get_an_earlier_turn(
    system: System, generator: object, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway
) -> None:
    """For example after "stop" and "regenerate" in a chat: the stopped turn still runs, and a limit refuses another."""
    gateway = await new_gateway(system.nats_url, limits_key="running=1")
    client, body = Client(gateway, system_log, tenant), question()
    await client.lose(body)
    for count in ("0", "1"):
        refused = await gateway.client.post(CHAT, json=body, headers={RETRY_COUNT: count})
        assert refused.status_code == 429


async def test_a_repetition_does_not_get_an_old_turn(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client that lost it does not wait for so long."""
    body = question()
    first = await client.lose(body)
    monkeypatch.setattr(sdk_retries, "REUSE_MAX", timedelta())
    assert await client.lose(body, 1) != first


async def test_a_repetition_does_not_get_a_turn_that_is_just_submitted(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no readers yet, but its client waits: the repetition is that of another request, which was refused."""
    stored, append = asyncio.Event(), TurnLog.append

    async def append_slowly(*arguments: Any, **named: Any) -> object:
        appended = await append(*arguments, **named)
        stored.set()
        await asyncio.sleep(SUBSCRIBE_WAIT_S / 2)
        return appended

    monkeypatch.setattr(TurnLog, "append", append_slowly)
    body = question()

    async def repeat() -> str:
        await stored.wait()
        return await client.lose(body, 1)

    repeating = asyncio.create_task(repeat())
    async with client.open(body, 0) as first:
        assert await repeating != first


@pytest.mark.parametrize(
    ("count", "headers"),
    [
        ("one", {}),
        ("-1", {}),
        ("1, 1", {}),
        ("99999", {}),
        (1, {"idempotency-key": "own"}),
        (1, {"x-session-id": "other"}),
        (1, {"x-project-id": "other"}),
    ],
)
async def test_another_request_gets_a_new_turn(client: Client, count: object, headers: dict[str, str]) -> None:
    """Also a malformed count, and a request with an Idempotency-Key, which no count can replace."""
    body = question()
    first = await client.lose(body)
    assert await client.lose(body, count, **headers) != first


async def test_another_body_or_route_gets_a_new_turn(client: Client) -> None:
    body = question()
    first = await client.lose(body)
    assert await client.lose(body | {"max_tokens": 899}, 1) != first
    assert await client.lose(body, 1, MESSAGES) != first


async def test_other_routes_ignore_the_count(client: Client) -> None:
    """They belong to clients that do not count."""
    body = {"message": question()["messages"][0]["content"]}
    first = await client.lose(body, path="/chat/stream")
    assert await client.lose(body, 1, "/chat/stream") != first


async def test_only_the_same_key_and_user_get_the_turn(
    system: System, generator: object, system_log: TurnLog, tenant: Tenant, new_gateway: NewGateway
) -> None:
    """Another API key of the tenant, and another user of a JWT, get a new turn, also in a later try of Envoy."""
    keys = f"{api_keys(tenant)},{tenant}:{hashlib.sha256(OTHER_KEY.encode()).hexdigest()}"
    settings = jwts.settings(jwt_user_claim="email")
    client = Client(await new_gateway(system.nats_url, api_keys=keys, **settings), system_log, tenant)
    body = question()
    first = await client.lose(body, **tried(1))
    credentials = [
        OTHER_KEY,
        *(jwts.token(sub=tenant, email=f"{name}@example.com").decode() for name in ("ann", "eve")),
    ]
    turns = [await client.lose(body, 0, authorization=f"Bearer {one}") for one in credentials[1:2]]
    others = [
        await client.lose(body, count, authorization=f"Bearer {one}", **try_)
        for one in credentials[::2]
        for count, try_ in ((1, {}), (0, tried(2)))
    ]
    assert len({first, *turns, *others}) == 6
    assert await client.lose(body, 1) == first
    assert await client.lose(body, 1, authorization=f"Bearer {credentials[1]}") == turns[0]


@pytest.mark.parametrize("count", [0, 1])
async def test_the_repetition_of_a_background_response_gets_its_turn(
    client: Client, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """If its response was lost. A response that was delivered does not count as lost."""
    body = {"model": "claude-haiku-5-5", "input": question()["messages"][0]["content"], "background": True}

    async def keep(*_: object) -> None:
        """Like a response that is lost."""

    if count:
        monkeypatch.setattr(Claims, "remove", keep)
    answers = [await client.gateway.client.post(RESPONSES, json=body, headers={RETRY_COUNT: str(n)}) for n in (0, 1)]
    assert (answers[0].json()["id"] == answers[1].json()["id"]) is bool(count)


def tried(attempt: object, request_id: str = "id-1") -> dict[str, str]:
    """Returns the headers of Envoy in the try with this number."""
    return {ATTEMPT_COUNT: str(attempt), REQUEST_ID: request_id}


# A client that does not count, and an SDK that does, to which Envoy hides its own tries.
COUNTS = pytest.mark.parametrize("count", [None, 0])


@COUNTS
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_repetition_of_envoy_gets_the_turn_of_the_first_try(
    client: Client, second_gateway: Gateway, path: str, count: object
) -> None:
    """At any gateway, and each try."""
    body = question()
    first = await client.lose(body, count, path, **tried(1))
    assert await client._replace(gateway=second_gateway).lose(body, count, path, **tried(2)) == first
    assert await client.lose(body, count, path, **tried(3)) == first


async def test_a_repetition_of_an_sdk_behind_envoy_gets_the_turn(client: Client) -> None:
    """It has another id. A try of Envoy before it may not have reached a gateway."""
    body = question()
    first = await client.lose(body, 0, **tried(1, "a"))
    assert await client.lose(body, 1, **tried(1, "b")) == first
    assert await client.lose(body, 2, **tried(2, "c")) == first
    assert await client.lose(body, 0, **tried(2, "a")) == first


@pytest.mark.parametrize("headers", [{REQUEST_ID: "id-1"}, tried(1)], ids=["no attempt count", "first tries"])
@COUNTS
async def test_equal_requests_with_one_id_at_once_are_different_turns(
    client: Client, headers: dict[str, str], count: object
) -> None:
    """An app passes the id of the request that it answers on to each of its own. Of their tries, one gets a turn."""
    body = question()
    turns = await asyncio.gather(*(client.lose(body, count, **headers) for _ in range(4)))
    assert len({*turns}) == 4
    if ATTEMPT_COUNT in headers:
        again = await asyncio.gather(*(client.lose(body, count, **tried(2)) for _ in range(4)))
        assert len({*turns, *again}) == 7


@pytest.mark.parametrize(
    "headers",
    [tried(2, "another"), {ATTEMPT_COUNT: "2"}, {REQUEST_ID: "id-1"}, tried("two"), tried("1, 2"), tried(1)],
    ids=["another id", "no id", "no count", "no number", "two counts", "a first try"],
)
@COUNTS
async def test_another_try_of_envoy_gets_a_new_turn(client: Client, headers: dict[str, str], count: object) -> None:
    body = question()
    first = await client.lose(body, count, **tried(1))
    assert await client.lose(body, count, **headers) != first


async def test_another_body_behind_envoy_gets_a_new_turn(client: Client) -> None:
    body = question()
    first = await client.lose(body, **tried(1))
    assert await client.lose(body | {"max_tokens": 899}, **tried(2)) != first


async def test_a_delivered_answer_behind_envoy_is_given_to_no_later_request(client: Client) -> None:
    """Neither to a try of Envoy nor to a repetition of the SDK, also if a try of Envoy has got it."""
    body = question("words=20 rate=20")

    async def receive(count: int, **headers: str) -> str:
        answer = await client.gateway.client.post(CHAT, json=body, headers={RETRY_COUNT: str(count), **headers})
        return answer.headers["tailrace-turn"]

    turns = [await receive(0, **tried(1)), await receive(0, **tried(2)), await receive(1, **tried(1, "b"))]
    assert len({*turns}) == 3
    lost = await client.lose(body, 0, **tried(1, "c"))
    assert await receive(0, **tried(2, "c")) == lost
    assert lost not in (await receive(1, **tried(1, "d")), await receive(0, **tried(3, "c")))


class AiSdk(NamedTuple):
    """AI SDK's `generateText`: each request is equal to the one before."""

    client: Client
    agent: str = "ai/7.0.173 ai-sdk-provider-utils/5.0.81 node.js/24"
    path: str = MESSAGES

    async def send(self, body: dict[str, Any]) -> str:
        """Sends the request and reads the answer. Returns its turn."""
        headers = {"user-agent": self.agent}
        answer = await self.client.gateway.client.post(self.path, json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.headers["tailrace-turn"]

    async def lose(self, body: dict[str, Any]) -> str:
        """Sends the request, and disconnects while the answer is written. Returns its turn."""
        before = await self.turns()
        sending = asyncio.create_task(self.send(body))

        async def new_turn() -> str | None:
            return next(iter(await self.turns() - before), None)

        turn = await until(new_turn)
        assert turn is not None
        key = TurnKey(self.client.tenant, TurnId(turn))
        await until(lambda: is_read(self.client.log, key))
        sending.cancel()

        async def is_unread() -> bool:
            return not await is_read(self.client.log, key)

        await until(is_unread)
        return turn

    async def turns(self) -> set[str]:
        listed = (await self.client.gateway.client.get("/v1/turns")).json()["data"]
        return {one["turn"] for one in listed}


WITHOUT_STREAM = "words=30 rate=20"


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("agent", ["ai/6.0.326 ai-sdk/provider-utils/4.0.65 runtime/node.js/24", "shop/1.0 ai/7.0.173"])
async def test_ai_sdk_gets_the_answer_without_a_stream_that_it_has_lost(client: Client, agent: str, path: str) -> None:
    """Once: after it was delivered, an equal request is a new turn."""
    sdk, body = AiSdk(client, agent, path), question(WITHOUT_STREAM, stream=False)
    first = await sdk.lose(body)
    await asyncio.sleep(UNCOUNTED_AGE_MIN.total_seconds())
    assert await sdk.send(body) == first
    assert await sdk.send(body) != first


@pytest.mark.parametrize("how", ["cancelled", "deleted"])
async def test_ai_sdk_gets_a_new_turn_after_a_stop(client: Client, how: str) -> None:
    """Nothing tells its repetition from a user who asks the same again on purpose."""
    sdk, body = AiSdk(client), question(WITHOUT_STREAM, stream=False)
    first = await sdk.lose(body)
    path = f"/v1/turns/{first}"
    http = client.gateway.client
    (await (http.delete(path) if how == "deleted" else http.post(f"{path}/cancel"))).raise_for_status()
    await asyncio.sleep(UNCOUNTED_AGE_MIN.total_seconds())
    assert await sdk.send(body) != first


@pytest.mark.parametrize("agent", ["mozilla/5.0", "openai/7.0.0", "my-ai/1.0", "ai-sdk/anthropic/4.0"])
async def test_another_client_without_a_count_gets_a_new_turn(client: Client, agent: str) -> None:
    body = question(WITHOUT_STREAM, stream=False)
    first = await AiSdk(client, agent).lose(body)
    await asyncio.sleep(UNCOUNTED_AGE_MIN.total_seconds())
    assert await AiSdk(client).send(body) != first


async def test_equal_calls_of_ai_sdk_at_the_same_time_are_different_turns(
    client: Client, second_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the first one has no readers yet."""
    stored, append = asyncio.Event(), TurnLog.append

    async def append_slowly(*arguments: Any, **named: Any) -> object:
        appended = await append(*arguments, **named)
        stored.set()
        await asyncio.sleep(2 * SUBSCRIBE_WAIT_S)
        return appended

    monkeypatch.setattr(TurnLog, "append", append_slowly)
    body = question(WITHOUT_STREAM, stream=False)
    sending = asyncio.create_task(AiSdk(client).send(body))
    await stored.wait()
    other = AiSdk(client._replace(gateway=second_gateway))
    turns = await asyncio.gather(other.send(body), other.send(body), sending)
    assert len({*turns}) == 3


async def test_a_stream_of_ai_sdk_that_was_cut_is_not_repeated(client: Client) -> None:
    """The user has seen a part of it, and asks for another answer."""
    body, agent = question(), {"user-agent": AiSdk(client).agent}
    turns = []
    for _ in range(2):
        async with client.gateway.client.stream("POST", CHAT, json=body, headers=agent) as response:
            turns.append(response.headers["tailrace-turn"])
        await asyncio.sleep(UNCOUNTED_AGE_MIN.total_seconds())
    assert len({*turns}) == 2


async def test_a_claim_that_was_overwritten_is_neither_renewed_nor_removed(
    connection: Connection, tenant: Tenant
) -> None:
    claims = Claims(connection)
    older, newer = (Claim(TurnId(new_id()), "0" * 64) for _ in range(2))
    revision = await claims.put(tenant, "key", older)
    found = await claims.read(tenant, "key")
    assert found == (older, revision)
    await claims.put(tenant, "key", newer)
    assert await claims.renew(tenant, "key", found) is None
    await claims.remove(tenant, "key", revision)
    current = await claims.read(tenant, "key")
    assert current is not None
    assert current.claim == newer
    await claims.remove(tenant, "key", current.revision)
    assert await claims.find(tenant, "key") is None
    assert await claims.claim(tenant, "key", older) == older


async def test_a_removed_claim_leaves_no_message(connection: Connection, tenant: Tenant) -> None:
    """Otherwise the bucket would have one for each answer of a day."""
    claims, name = Claims(connection), f"{tenant}\0key".encode()
    subject = f"$KV.CLAIMS.{hashlib.sha256(name).hexdigest()}"

    async def is_stored() -> bool:
        return subject in (await connection.stream_info(CLAIMS_STREAM, subjects=subject)).state.subjects

    revision = await claims.put(tenant, "key", Claim(TurnId(new_id()), "0" * 64))
    assert await is_stored()
    await claims.remove(tenant, "key", revision)

    async def is_gone() -> bool:
        return not await is_stored()

    await until(is_gone)


async def test_a_claim_is_removed_from_a_bucket_of_an_earlier_version(own_connection: Connection) -> None:
    """Such a bucket does not allow the header Nats-TTL."""
    jetstream = own_connection.jetstream
    await jetstream.delete_stream(CLAIMS_STREAM)
    await jetstream.add_stream(name=CLAIMS_STREAM, subjects=["$KV.CLAIMS.>"], max_msgs_per_subject=1)
    claims, tenant = Claims(own_connection), Tenant("a")
    revision = await claims.put(tenant, "key", Claim(TurnId(new_id()), "0" * 64))
    await claims.remove(tenant, "key", revision)
    assert await claims.find(tenant, "key") is None
