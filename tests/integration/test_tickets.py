"""Tickets over HTTP: single-use and shared links to one turn's events."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.gateway.auth.signed_tokens import Ticket, TokenSigner
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.signing_secret import signing_secret
from tailrace.proto.subjects import TurnKey
from tests.harness import processes
from tests.harness.route_table import ROWS, named
from tests.harness.sse_parser import turns_own
from tests.harness.turn_writer import Writer
from tests.integration.conftest import KEY, Gateway, NewGateway, api_keys

TEXTS = ("Danube ", "Elbe ", "Rhine")
ID = re.compile(r"^id: (.+)$", re.MULTILINE)


@pytest.fixture
async def turn(log: TurnLog, key: TurnKey) -> TurnKey:
    """A turn that has ended."""
    writer = Writer(log, key)
    await writer.open(*TEXTS)
    await writer.end()
    return key


@pytest.fixture
async def keyless(lone_gateway: Gateway) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without an API key."""
    async with httpx2.AsyncClient(base_url=lone_gateway.url, timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
async def signature(connection: Connection) -> TokenSigner:
    """The gateways' signer, for tickets that no gateway would create."""
    return TokenSigner(await signing_secret(connection))


async def create(gateway: Gateway, turn: TurnId, **body: object) -> dict[str, Any]:
    answer = await gateway.client.post(f"/v1/turns/{turn}/tickets", json=body)
    assert answer.status_code == 200, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


def refused(answer: httpx2.Response) -> bool:
    return (answer.status_code, answer.json()["error"]["code"]) == (401, "credential_invalid")


def of_key(key: TurnKey, **changed: object) -> Ticket:
    """Returns a ticket without an API key, valid for a minute."""
    soon = int(time.time()) + 60
    ticket = Ticket(tenant=key.tenant, turn=key.turn, key=None, has_key=False, begin_by=soon, until=soon)
    return msgspec.structs.replace(ticket, **changed)


async def test_a_single_use_ticket_opens_the_stream_once(
    lone_gateway: Gateway, keyless: httpx2.AsyncClient, turn: TurnKey
) -> None:
    """The whole stream; then the link is refused."""
    ticket = await create(lone_gateway, turn.turn)
    own = await lone_gateway.client.get(f"/v1/turns/{turn.turn}/events")
    first, second = await keyless.get(ticket["events"]), await keyless.get(ticket["events"])
    later = await keyless.get(f"{ticket['events']}&after={ID.findall(own.text)[0]}")
    assert first.status_code == 200
    unproved = re.sub(rb"^id: [^.\n]+\.", b"id: ", first.content, flags=re.MULTILINE)
    assert turns_own(unproved) == turns_own(own.content)
    assert refused(second)
    assert refused(later)
    assert 0 < ticket["begin_by"] - time.time() <= 60


@pytest.mark.rule("R39")
async def test_only_the_stream_with_the_proof_resumes(
    lone_gateway: Gateway, nats_url: str, new_gateway: NewGateway, log: TurnLog, key: TurnKey
) -> None:
    """An EventSource reconnects with the same URL and the last id, at any gateway, and receives the rest once.

    The sequence alone, which can be guessed, the proof of another ticket, and an invented one are refused.
    """
    writer = Writer(log, key)
    await writer.open(*TEXTS[:2])
    elsewhere = await new_gateway(nats_url)
    link, other = await create(lone_gateway, key.turn), await create(lone_gateway, key.turn)
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        last = await read_until("Elbe", client, lone_gateway.url + link["events"])
        foreign = await read_until("Danube", client, lone_gateway.url + other["events"])
        await writer.say(TEXTS[2])
        await writer.end()
        url, (proof, _, seq) = elsewhere.url + link["events"], last.partition(".")
        theirs = foreign.partition(".")[0]
        for stolen in (seq, "0", f".{seq}", f"{theirs}.{seq}", f"{'A' * 22}.{seq}", proof, f"{proof[:-1]}.{seq}", "ü"):
            headers = [(b"last-event-id", stolen.encode())]
            assert refused(await client.get(url, headers=headers)), stolen
        back = await client.get(url, headers={"last-event-id": last})
        again = await client.get(url, headers={"last-event-id": ID.findall(back.text)[-1]})
    assert back.status_code == 200
    assert ["Rhine" in back.text, "Danube" in back.text, "Elbe" in back.text] == [True, False, False]
    # An EventSource does not reconnect after 204.
    assert again.status_code == 204


async def read_until(word: str, client: httpx2.AsyncClient, url: str) -> str:
    """Returns the id of the event with `word`, and disconnects."""
    async with client.stream("GET", url) as stream:
        seen = ""
        async for line in stream.aiter_lines():
            seen += line + "\n"
            # The id follows the data.
            if word in seen and (found := ID.findall(seen.partition(word)[2])):
                return str(found[0])
    raise AssertionError(seen)


@pytest.mark.rule("R39")
@pytest.mark.rule("S4")
async def test_of_concurrent_uses_of_a_ticket_one_succeeds(
    lone_gateway: Gateway, nats_url: str, new_gateway: NewGateway, turn: TurnKey
) -> None:
    """Also at different gateways."""
    elsewhere = await new_gateway(nats_url)
    path = (await create(lone_gateway, turn.turn))["events"]
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        requests = [client.get(gateway.url + path) for gateway in (lone_gateway, elsewhere) * 10]
        answers = await asyncio.gather(*requests)
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 19


async def test_a_refused_request_does_not_use_the_ticket(
    lone_gateway: Gateway, keyless: httpx2.AsyncClient, turn: TurnKey
) -> None:
    """An invalid cursor or dialect, and a stream without events: only the first byte sent uses the ticket."""
    path = (await create(lone_gateway, turn.turn))["events"]
    record = (await lone_gateway.client.get(f"/v1/turns/{turn.turn}")).json()
    asked = (f"{path}&after=x", f"{path}&after=1", f"{path}&dialect=x", f"{path}&after={record['cursor']}")
    assert [(await keyless.get(url)).status_code for url in asked] == [400, 400, 400, 204]
    assert (await keyless.head(path)).status_code == 401
    assert (await keyless.get(f"{path}&dialect=text")).text == "".join(TEXTS)
    assert refused(await keyless.get(path))


@pytest.mark.rule("R39")
@pytest.mark.rule("S4")
@pytest.mark.parametrize("body", [{}, {"is_shared": True}], ids=["once", "shared"])
async def test_a_ticket_is_refused_on_other_routes_and_methods(
    lone_gateway: Gateway,
    keyless: httpx2.AsyncClient,
    turn: TurnKey,
    log: TurnLog,
    tenant: Tenant,
    body: dict[str, bool],
) -> None:
    """Nor in a header, for another turn, beside another credential, or twice."""
    ticket = (await create(lone_gateway, turn.turn, **body))["ticket"]
    other = TurnKey(tenant, TurnId(new_id()))
    await Writer(log, other).open("Oder")
    of_this = named(turn.turn, turn.turn, turn.turn)
    for (method, path), row in ROWS.items():
        if not row.is_public and (method, path) != ("GET", "/v1/turns/{turn}/events"):
            answer = await keyless.request(method, f"{path.format(**of_this)}?ticket={ticket}", json=row.body)
            assert refused(answer), (method, path)
    events = f"/v1/turns/{turn.turn}/events"
    for headers in ({"authorization": f"Bearer {ticket}"}, {"x-api-key": ticket}, {"cookie": f"ticket={ticket}"}):
        assert refused(await keyless.get(events, headers=headers))
    for beside in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"authorization": "Bearer x"}):
        assert refused(await keyless.get(f"{events}?ticket={ticket}", headers=beside))
    assert refused(await keyless.get(f"{events}?ticket={ticket}&ticket={ticket}"))
    assert refused(await keyless.get(f"{events}?ticket={ticket[:-1]}x"))
    assert refused(await keyless.get(f"{events}?Ticket={ticket}"))
    there = await keyless.get(f"/v1/turns/{other.turn}/events?ticket={ticket}")
    unknown = await keyless.get(f"/v1/turns/{new_id()}/events?ticket={ticket}")
    assert (there.status_code, there.content) == (404, unknown.content)
    # The ticket is still unused.
    assert (await keyless.get(f"{events}?ticket={ticket}")).status_code == 200


@pytest.mark.rule("S4")
async def test_a_ticket_expires(keyless: httpx2.AsyncClient, turn: TurnKey, signature: TokenSigner) -> None:
    """A single-use ticket must be used within a minute, and its stream may resume longer; a shared one just expires."""
    now = int(time.time())
    url = f"/v1/turns/{turn.turn}/events"
    late = signature.sign(of_key(turn, begin_by=now - 5, until=now + 60, once="late"))
    over = signature.sign(of_key(turn, begin_by=now - 60, until=now - 5, once="over"))
    shared = signature.sign(of_key(turn, begin_by=now - 5, until=now - 5))
    good = signature.sign(of_key(turn))
    whole = await keyless.get(f"{url}?ticket={good}")
    first = ID.findall(whole.text)[0]
    proved = {token: {"last-event-id": f"{signature.proof(token)}.{first}"} for token in (late, over, shared)}
    assert whole.status_code == 200
    for token in (late, over, shared):
        assert refused(await keyless.get(f"{url}?ticket={token}"))
    answers = [await keyless.get(f"{url}?ticket={token}", headers=headers) for token, headers in proved.items()]
    assert [answer.status_code for answer in answers] == [200, 401, 401]


@pytest.mark.rule("R39")
async def test_a_ticket_ends_with_its_key(
    lone_gateway: Gateway, keyless: httpx2.AsyncClient, nats_url: str, new_gateway: NewGateway, turn: TurnKey
) -> None:
    """A gateway without that key, or where it belongs to another tenant, refuses the link in spite of its signature."""
    path = (await create(lone_gateway, turn.turn, is_shared=True))["events"]
    without = await new_gateway(nats_url, api_keys=f"other:{'0' * 64}")
    moved = await new_gateway(nats_url, api_keys=api_keys(Tenant("other")))
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        assert [(await client.get(one.url + path)).status_code for one in (lone_gateway, without, moved)] == [
            200,
            401,
            401,
        ]


async def test_a_shared_ticket_serves_many_readers_until_it_expires(
    lone_gateway: Gateway, keyless: httpx2.AsyncClient, turn: TurnKey
) -> None:
    """The ids have no proof, so any client can resume. The owner chooses its life, up to a day."""
    ticket = await create(lone_gateway, turn.turn, is_shared=True, life_s=7200)
    assert 7190 < ticket["until"] - time.time() <= 7200
    own = await lone_gateway.client.get(f"/v1/turns/{turn.turn}/events")
    for _ in range(3):
        assert turns_own((await keyless.get(ticket["events"])).content) == turns_own(own.content)
    ids = ID.findall(own.text)
    back = await keyless.get(ticket["events"], headers={"last-event-id": ids[0]})
    assert ID.findall(back.text) == ids[1:]


@pytest.mark.parametrize(
    "body",
    [
        {"life_s": 600},
        {"is_shared": True, "life_s": 59},
        {"is_shared": True, "life_s": 86401},
        {"is_shared": True, "life_s": -1},
        {"is_shared": True, "life_s": 1e9},
        {"is_shared": "yes"},
        {"tenant": "other"},
        {"turn": "other"},
        {"scopes": ["manage"]},
        [],
    ],
)
async def test_an_invalid_ticket_request_is_refused(lone_gateway: Gateway, turn: TurnKey, body: object) -> None:
    answer = await lone_gateway.client.post(f"/v1/turns/{turn.turn}/tickets", json=body)
    assert answer.status_code == 400


@pytest.mark.rule("S4")
async def test_answers_to_tickets_have_no_store_and_no_referrer(
    lone_gateway: Gateway, keyless: httpx2.AsyncClient, turn: TurnKey
) -> None:
    for body in ({}, {"is_shared": True}):
        asked = await lone_gateway.client.post(f"/v1/turns/{turn.turn}/tickets", json=body)
        read = await keyless.get(asked.json()["events"])
        for answer in (asked, read):
            assert "no-store" in answer.headers["cache-control"]
            assert answer.headers["referrer-policy"] == "no-referrer"


async def test_without_keys_a_ticket_is_still_verified(
    nats_url: str, new_gateway: NewGateway, connection: Connection, signature: TokenSigner
) -> None:
    """A used, forged or foreign ticket is refused, as it would be with keys."""
    gateway = await new_gateway(nats_url, api_keys="")
    turn = TurnKey(Tenant("local"), TurnId(new_id()))
    writer = Writer(TurnLog(connection), turn)
    await writer.open(*TEXTS)
    await writer.end()
    ticket = await create(gateway, turn.turn)
    now = int(time.time())
    over = signature.sign(of_key(turn, begin_by=now - 5, until=now - 5))
    elsewhere = await gateway.client.get(f"/v1/turns/{new_id()}/events?ticket={ticket['ticket']}")
    answers = [await gateway.client.get(ticket["events"]) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401]
    shared = (await create(gateway, turn.turn, is_shared=True))["ticket"]
    for query in ("ticket=forged", f"ticket={over}", f"ticket={shared}&ticket={shared}", "ticket="):
        assert refused(await gateway.client.get(f"/v1/turns/{turn.turn}/events?{query}")), query
    assert refused(elsewhere)


@pytest.mark.rule("S4")
async def test_tickets_are_not_logged(nats_url: str, tenant: Tenant, turn: TurnKey, tmp_path: Path) -> None:
    """No log line has a query string, at the level debug, for used and refused tickets."""
    environ = {"TAILRACE_API_KEYS": api_keys(tenant), "TAILRACE_LOG_LEVEL": "debug"}
    async with processes.gateway(tmp_path, nats_url, **environ) as gateway:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=20, trust_env=False) as client:
            asked = await client.post(
                f"/v1/turns/{turn.turn}/tickets", json={}, headers={"authorization": f"Bearer {KEY}"}
            )
            path, ticket = asked.json()["events"], asked.json()["ticket"]
            statuses = [
                (await client.get(url)).status_code for url in (path, path, f"{path}x", f"/nowhere?ticket={ticket}")
            ]
        await gateway.stop()
        printed = gateway.printed.read_bytes()
    assert statuses == [200, 401, 401, 404]
    assert ticket[:20].encode() not in printed
    assert b"?" not in printed
