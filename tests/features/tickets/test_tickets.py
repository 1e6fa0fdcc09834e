"""Tickets over HTTP: single-use and shared links to the events of one turn."""

import asyncio
import base64
import hashlib
import json
import re
import time
from collections.abc import AsyncIterator
from signal import SIGCONT
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest
from starlette.requests import Request

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.tickets import older_gateways
from tailrace.features.tickets.tickets import Ticket, Tickets
from tailrace.features.tickets.used_tickets import UsedTickets
from tailrace.gateway.auth.principal import NoKey, Principal
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.auth.signing_secret import signing_secret
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Rpc, TurnLog
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.ownership import WHOLE, Scope, name_token
from tests.harness import jwts
from tests.harness.freeze import freeze
from tests.harness.refusals import problem_of
from tests.harness.route_table import ROWS, path_parameters
from tests.harness.sse_parser import without_retry
from tests.harness.turn_writer import Writer
from tests.harness.until import until, until_equal
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys
from tests.integration.test_admin_api import outdated

TEXTS = ("Danube ", "Elbe ", "Rhine")
ID = re.compile(r"^id: (.+)$", re.MULTILINE)


class Turn(NamedTuple):
    """A completed turn, its gateway, and a client without an API key."""

    key: TurnKey
    gateway: Gateway
    keyless: httpx2.AsyncClient
    signer: TokenSigner

    @property
    def id(self) -> TurnId:
        return self.key.turn

    @property
    def events(self) -> str:
        return f"/v1/turns/{self.id}/events"

    async def own_stream(self) -> httpx2.Response:
        """Returns the stream as the owner reads it, with its API key."""
        return await self.gateway.client.get(self.events)

    async def create(self, **body: object) -> dict[str, Any]:
        return await create(self.gateway, self.id, **body)

    def sign(self, **changed: object) -> str:
        """Returns a ticket as for a JWT, valid for a minute unless changed."""
        soon = int(time.time()) + 60
        ticket = Ticket(tenant=self.key.tenant, turn=self.id, key="jwt_0", has_key=False, begin_by=soon, until=soon)
        return self.signer.sign(msgspec.structs.replace(ticket, **changed))


@pytest.fixture
async def turn(lone_gateway: Gateway, log: TurnLog, connection: Connection, key: TurnKey) -> AsyncIterator[Turn]:
    writer = Writer(log, key)
    await writer.open(*TEXTS)
    await writer.end()
    signer = TokenSigner(await signing_secret(connection))
    async with httpx2.AsyncClient(base_url=lone_gateway.url, timeout=20, trust_env=False) as client:
        yield Turn(key, lone_gateway, client, signer)


async def create(gateway: Gateway, turn: TurnId, **body: object) -> dict[str, Any]:
    answer = await gateway.client.post(f"/v1/turns/{turn}/tickets", json=body)
    assert answer.status_code == 200, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


def read_refusal(answer: httpx2.Response) -> bool:
    return (answer.status_code, problem_of(answer.content).code) == (401, "credential_invalid")


async def test_a_single_use_ticket_opens_the_whole_stream_once(turn: Turn) -> None:
    """The first byte uses it: an invalid cursor or dialect, a stream without events and HEAD do not."""
    ticket, own = await turn.create(), await turn.own_stream()
    path = ticket["events"]
    record = (await turn.gateway.client.get(f"/v1/turns/{turn.id}")).json()
    unused = (f"{path}&after=x", f"{path}&after=1", f"{path}&dialect=x", f"{path}&after={record['cursor']}")
    assert [(await turn.keyless.get(url)).status_code for url in unused] == [400, 400, 400, 204]
    assert (await turn.keyless.head(path)).status_code == 401
    first, second = await turn.keyless.get(path), await turn.keyless.get(path)
    assert first.status_code == 200
    without_proof = re.sub(rb"^id: [^.\n]+\.", b"id: ", first.content, flags=re.MULTILINE)
    assert without_retry(without_proof) == without_retry(own.content)
    assert read_refusal(second)
    assert read_refusal(await turn.keyless.get(f"{path}&after={ID.findall(own.text)[0]}"))
    assert 0 < ticket["begin_by"] - time.time() <= 60


@pytest.mark.rule("R39")
async def test_a_stream_resumes_with_the_proof_in_its_last_id_only(
    lone_gateway: Gateway, nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey
) -> None:
    """An EventSource reconnects with the same URL and the last id, at any gateway, and receives the rest once.

    The sequence alone, which can be guessed, the proof of another ticket, and an invented one are refused.
    """

    async def read_until(word: str, url: str) -> str:
        """Returns the id of the event with `word`, and disconnects."""
        async with client.stream("GET", url) as stream:
            seen = ""
            async for line in stream.aiter_lines():
                seen += line + "\n"
                # The id follows the data.
                if word in seen and (found := ID.findall(seen.partition(word)[2])):
                    return str(found[0])
        raise AssertionError(seen)

    writer = Writer(log, key)
    await writer.open(*TEXTS[:2])
    elsewhere = await new_gateway(nats_url)
    link, other = await create(lone_gateway, key.turn), await create(lone_gateway, key.turn)
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        last = await read_until("Elbe", lone_gateway.url + link["events"])
        foreign = (await read_until("Danube", lone_gateway.url + other["events"])).partition(".")[0]
        await writer.store_texts(TEXTS[2])
        await writer.end()
        url, (proof, _, seq) = elsewhere.url + link["events"], last.partition(".")
        for stolen in (seq, "0", f".{seq}", f"{foreign}.{seq}", f"{'A' * 22}.{seq}", proof, f"{proof[:-1]}.{seq}", "ü"):
            assert read_refusal(await client.get(url, headers=[(b"last-event-id", stolen.encode())])), stolen
        resumed = await client.get(url, headers={"last-event-id": last})
        again = await client.get(url, headers={"last-event-id": ID.findall(resumed.text)[-1]})
        # Polyfills send it in the query.
        polyfill = await client.get(f"{url}&lastEventId={last}")
        assert read_refusal(await client.get(f"{url}&lastEventId={seq}"))
    assert [word in resumed.text for word in ("Danube", "Elbe", "Rhine")] == [False, False, True]
    assert ID.findall(polyfill.text) == ID.findall(resumed.text)
    # An EventSource does not reconnect after 204.
    assert (resumed.status_code, again.status_code) == (200, 204)


@pytest.mark.rule("R39")
@pytest.mark.rule("S4")
async def test_a_ticket_is_refused_on_other_routes_and_methods(turn: Turn, log: TurnLog) -> None:
    """Nor in a header, for another turn, beside another credential, or twice."""
    ticket, keyless, events = (await turn.create())["ticket"], turn.keyless, turn.events
    names = path_parameters(turn.id, turn.id, turn.id)
    for (method, path), row in ROWS.items():
        if not row.is_public and (method, path) != ("GET", "/v1/turns/{turn}/events"):
            answer = await keyless.request(method, f"{path.format(**names)}?ticket={ticket}", json=row.body)
            assert read_refusal(answer), (method, path)
    for headers in ({"authorization": f"Bearer {ticket}"}, {"x-api-key": ticket}, {"cookie": f"ticket={ticket}"}):
        assert read_refusal(await keyless.get(events, headers=headers))
    for beside in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"authorization": "Bearer x"}):
        assert read_refusal(await keyless.get(f"{events}?ticket={ticket}", headers=beside))
    for query in (f"ticket={ticket}&ticket={ticket}", f"ticket={ticket[:-1]}x", f"Ticket={ticket}"):
        assert read_refusal(await keyless.get(f"{events}?{query}"))
    other = TurnKey(turn.key.tenant, TurnId(new_id()))
    await Writer(log, other).open("Oder")
    foreign = await keyless.get(f"/v1/turns/{other.turn}/events?ticket={ticket}")
    unknown = await keyless.get(f"/v1/turns/{new_id()}/events?ticket={ticket}")
    assert (foreign.status_code, foreign.content) == (404, unknown.content)
    # The ticket is still unused.
    assert (await keyless.get(f"{events}?ticket={ticket}")).status_code == 200


@pytest.mark.rule("S4")
async def test_a_ticket_expires(turn: Turn) -> None:
    """A single-use ticket must be used within a minute, and its stream may resume longer; a shared one just expires."""
    now = int(time.time())
    late = turn.sign(begin_by=now - 5, until=now + 60, once="late")
    over = turn.sign(begin_by=now - 60, until=now - 5, once="over")
    shared = turn.sign(begin_by=now - 5, until=now - 5)
    whole = await turn.keyless.get(f"{turn.events}?ticket={turn.sign()}")
    assert whole.status_code == 200
    for token, status in ((late, 200), (over, 401), (shared, 401)):
        url = f"{turn.events}?ticket={token}"
        assert read_refusal(await turn.keyless.get(url))
        resume = {"last-event-id": f"{turn.signer.proof(token)}.{ID.findall(whole.text)[0]}"}
        assert (await turn.keyless.get(url, headers=resume)).status_code == status


@pytest.mark.rule("R39")
async def test_a_ticket_ends_with_its_key(turn: Turn, nats_url: str, new_gateway: NewGateway) -> None:
    """A gateway without that key, or where it belongs to another tenant, refuses the link in spite of its signature."""
    path = (await turn.create(is_shared=True))["events"]
    assert (await turn.keyless.get(path)).status_code == 200
    for keys in (f"other:{'0' * 64}", api_keys(Tenant("other"))):
        gateway = await new_gateway(nats_url, api_keys=keys)
        async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as client:
            assert read_refusal(await client.get(path))


@pytest.mark.rule("R39")
@pytest.mark.rule("S4")
async def test_a_ticket_shows_nothing_of_its_creator_and_its_turn(
    nats_url: str, new_gateway: NewGateway, turn: Turn
) -> None:
    """An address as a JWT's user, and the name of the JWT, which is an unkeyed hash of the address."""
    given = jwts.settings(jwt_tenant_claim="org", jwt_user_claim="email")
    gateway = await new_gateway(nats_url, **given)
    address, tenant = "ann.miller@example.com", turn.key.tenant
    token = jwts.token(org=tenant, sub=address, email=address).decode()
    gateway.client.headers["authorization"] = f"Bearer {token}"
    for body in ({}, {"is_shared": True}):
        ticket = await create(gateway, turn.id, **body)
        sent = ticket["ticket"].removeprefix("trt_")
        pieces = [sent.encode(), *(base64.urlsafe_b64decode(f"{piece}==") for piece in sent.split("."))]
        hidden = [address, "ann.m", "miller", "example", tenant, turn.id, str(ticket["until"]), "jwt_"]
        hidden += [name_token(address)[4:], hashlib.sha256(address.encode()).hexdigest()[:8]]
        assert [name for name in hidden for piece in pieces if name.encode() in piece] == []
        assert len(ticket["events"]) < 512
        assert (await turn.keyless.get(f"{gateway.url}{ticket['events']}")).status_code == 200


@pytest.mark.rule("R39")
async def test_a_signed_ticket_of_an_older_version_opens_its_turn(turn: Turn) -> None:
    """It lives at most a day after the upgrade. Its fields can be read."""
    shared, single = turn.sign(user="ann"), turn.sign(user="ann", once="one")
    fields = json.loads(base64.urlsafe_b64decode(shared.partition(".")[0].removeprefix("trt_") + "=="))
    assert fields == [turn.key.tenant, turn.id, "jwt_0", False, fields[4], fields[4], "", "ann"]
    answers = [await turn.keyless.get(f"{turn.events}?ticket={token}") for token in (shared, shared, single, single)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 401]


@pytest.mark.rule("R39")
@pytest.mark.rule("F29")
async def test_tickets_are_signed_while_a_gateway_of_an_older_version_runs(
    own_server: NatsServer,
    own_log: TurnLog,
    new_gateway: NewGateway,
    key: TurnKey,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That gateway would refuse an encrypted ticket."""
    monkeypatch.setattr(older_gateways, "CHECK_S", 0.05)
    monkeypatch.setattr(older_gateways, "ANSWER_S", 0.5)
    await Writer(own_log, key).open(*TEXTS)
    older = await outdated(own_server.url)
    gateway = await new_gateway(own_server.url)

    async def is_signed() -> bool:
        return "." in (await create(gateway, key.turn))["ticket"]

    try:
        assert [await is_signed() for _ in range(3)] == [True] * 3
    finally:
        await older.close()
    await until_equal(is_signed, False)


@pytest.mark.rule("S4")
async def test_a_shared_ticket_serves_many_readers_until_it_expires(turn: Turn) -> None:
    """The ids have no proof, so any client can resume. The owner chooses its life, up to a day.

    No response to a ticket may be cached or send a Referer.
    """
    ticket = await turn.create(is_shared=True, life_s=7200)
    assert 7190 < ticket["until"] - time.time() <= 7200
    own = await turn.own_stream()
    for _ in range(3):
        assert without_retry((await turn.keyless.get(ticket["events"])).content) == without_retry(own.content)
    ids = ID.findall(own.text)
    resumed = await turn.keyless.get(ticket["events"], headers={"last-event-id": ids[0]})
    assert ID.findall(resumed.text) == ids[1:]
    for body in ({}, {"is_shared": True}):
        created = await turn.gateway.client.post(f"/v1/turns/{turn.id}/tickets", json=body)
        for answer in (created, await turn.keyless.get(created.json()["events"])):
            assert "no-store" in answer.headers["cache-control"]
            assert answer.headers["referrer-policy"] == "no-referrer"


WRONG_LIVES: list[object] = [{"is_shared": True, "life_s": life_s} for life_s in (59, 86401, -1, 1e9)]
WRONG_FIELDS: list[object] = [{"life_s": 600}, {"is_shared": "yes"}, {"tenant": "other"}, {"turn": "other"}, []]


async def test_an_invalid_ticket_request_is_refused(turn: Turn) -> None:
    for body in (*WRONG_LIVES, *WRONG_FIELDS, {"scopes": ["manage"]}):
        answer = await turn.gateway.client.post(f"/v1/turns/{turn.id}/tickets", json=body)
        assert answer.status_code == 400, body


async def test_without_keys_a_ticket_is_still_verified(
    nats_url: str, new_gateway: NewGateway, turn: Turn, log: TurnLog
) -> None:
    """A used, expired or forged ticket, and one for another turn, are refused as with keys."""
    gateway = await new_gateway(nats_url, api_keys="")
    local = turn._replace(key=TurnKey(Tenant("local"), TurnId(new_id())), gateway=gateway)
    writer = Writer(log, local.key)
    await writer.open(*TEXTS)
    await writer.end()
    ticket = await local.create()
    foreign = await gateway.client.get(f"/v1/turns/{new_id()}/events?ticket={ticket['ticket']}")
    assert [(await gateway.client.get(ticket["events"])).status_code for _ in range(2)] == [200, 401]
    now, shared = int(time.time()), (await local.create(is_shared=True))["ticket"]
    over = local.sign(begin_by=now - 5, until=now - 5)
    for query in ("ticket=forged", f"ticket={over}", "ticket="):
        assert read_refusal(await gateway.client.get(f"{local.events}?{query}")), query
    assert (await gateway.client.get(f"{local.events}?ticket={shared}&ticket={shared}")).status_code == 400
    assert (foreign.status_code, problem_of(foreign.content).code) == (404, "turn_not_found")


async def test_a_ticket_whose_first_use_was_not_acknowledged_is_still_used_once(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its reader would be refused although the ticket was never used."""
    create, lost = Bucket.create, [True]

    async def lose_first(self: Bucket, key: str, data: bytes) -> bytes:
        stored = await create(self, key, data)
        if lost and lost.pop():
            raise LogUnavailable("the acknowledgement is lost")
        return stored

    monkeypatch.setattr(Bucket, "create", lose_first)
    uses, ticket = UsedTickets(connection), new_id()
    assert await uses.mark_used(ticket)
    assert not await uses.mark_used(ticket)


@pytest.mark.parametrize("stored", [0, 1])
async def test_a_ticket_that_two_requests_have_tried_to_use_is_still_used_once(
    connection: Connection, monkeypatch: pytest.MonkeyPatch, stored: int
) -> None:
    """A client has repeated its request before the gateway has refused the first one. NATS stores the use of either."""
    create, tried = Bucket.create, list[bytes]()

    async def lose_four(self: Bucket, key: str, data: bytes) -> bytes:
        tried.append(data)
        if len(tried) > 4:
            return await create(self, key, data)
        if list(dict.fromkeys(tried)).index(data) == stored:
            await create(self, key, data)
        raise LogUnavailable("the acknowledgement is lost")

    monkeypatch.setattr(Bucket, "create", lose_four)
    uses, ticket = UsedTickets(connection), new_id()
    both = await asyncio.gather(uses.mark_used(ticket), uses.mark_used(ticket), return_exceptions=True)
    assert [type(one) for one in both] == [LogUnavailable] * 2
    assert list(await asyncio.gather(uses.mark_used(ticket), uses.mark_used(ticket))) == [True, False]


async def test_a_ticket_whose_first_use_got_503_opens_its_stream_later(
    own_server: NatsServer, own_log: TurnLog, own_gateway: Gateway, key: TurnKey
) -> None:
    """A frozen nats-server stores the use when it continues, after the gateway has refused the reader.

    Another reader keeps the turn in the gateway's memory. Otherwise the request fails before it uses the ticket.
    """

    async def reads_turn() -> bool:
        return (await own_gateway.client.get(f"/v1/turns/{key.turn}")).status_code == 200

    await Writer(own_log, key).open(*TEXTS)
    earlier, ticket = await create(own_gateway, key.turn), await create(own_gateway, key.turn)
    async with (
        httpx2.AsyncClient(base_url=own_gateway.url, timeout=20, trust_env=False) as keyless,
        keyless.stream("GET", earlier["events"]) as other,
    ):
        assert other.status_code == 200
        freeze(own_server)
        try:
            refused = await keyless.get(ticket["events"])
        finally:
            own_server.signal(SIGCONT)
        assert (refused.status_code, problem_of(refused.content).code) == (503, "log_unavailable")
        await until(reads_turn)
        async with keyless.stream("GET", ticket["events"]) as stream:
            assert stream.status_code == 200
        assert read_refusal(await keyless.get(ticket["events"]))


@pytest.mark.rule("R39")
async def test_a_ticket_of_a_key_that_ends_while_it_is_made_is_not_valid(connection: Connection) -> None:
    """It does not become a ticket of a credential that has no record, such as a JWT."""
    gateways = older_gateways.OlderGateways(Rpc(connection))
    tickets = Tickets(TokenSigner(bytes(32)), UsedTickets(connection), lambda _: NoKey.ENDED, gateways)
    creator = Principal(Scope(Tenant("acme"), WHOLE), "key_0000000000000000")
    token, ticket = await tickets.create_shared(creator, TurnId("t"), 60)
    request = Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []})
    assert (ticket.has_key, await tickets.verify(token.encode(), request)) == (True, None)
