"""What a credential was exchanged for, a ticket or a login, ends with it: everywhere, and in streams that are open."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import jwt
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.login import COOKIE
from tailrace.gateway.auth.signed_tokens import Access, TokenSigner
from tailrace.proto.api_key import NewKey, Scope, new_key
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.api_keys import ApiKeyStore
from tailrace.proto.nats.signing_secret import signing_secret
from tailrace.proto.subjects import TurnKey
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

SECRET = "a-secret-of-at-least-thirty-two-bytes"
JWT = {"jwt_secret": SECRET, "jwt_issuer": "https://issuer.example", "jwt_audience": "authenticated"}


def key_of(tenant: Tenant, *scopes: Scope) -> NewKey:
    return new_key(tenant, now=int(time.time()), scopes=list(scopes or ("write", "read", "manage")))


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
async def running(own_log: TurnLog, key: TurnKey) -> TurnKey:
    """A turn whose answer does not end."""
    await Writer(own_log, key).open("Danube ")
    return key


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        yield client


@asynccontextmanager
async def reading(client: httpx2.AsyncClient, url: str, **headers: str) -> AsyncIterator[asyncio.Task[str]]:
    """A reader that has heard something: what it heard until it is over, however it is over, and its last id."""
    heard = asyncio.Event()

    async def read() -> str:
        last = ""
        async with client.stream("GET", url, headers=headers) as stream:
            assert stream.status_code == 200
            async for line in stream.aiter_lines():
                if line.startswith("id: "):
                    last = line.removeprefix("id: ")
                    heard.set()
        return last

    task = asyncio.create_task(read())
    await asyncio.wait_for(heard.wait(), 10)
    try:
        yield task
    finally:
        task.cancel()


async def stored(connection: Connection, gateway: Gateway, key: NewKey) -> str:
    """The key, once the gateway has heard of it."""
    await ApiKeyStore(connection).create(key.record)
    headers = bearer(key.secret)

    async def is_known() -> bool:
        return (await gateway.client.get("/v1/turns/NONE", headers=headers)).status_code != 401

    await until(is_known)
    return key.secret


async def test_with_a_key_goes_all_that_it_was_exchanged_for(
    own_server: NatsServer,
    own_connection: Connection,
    new_gateway: NewGateway,
    running: TurnKey,
    client: httpx2.AsyncClient,
) -> None:
    """Tickets of both kinds and a login, at another gateway: their streams close, and whoever comes back is nobody."""
    made_at = await new_gateway(own_server.url)
    read_at = await new_gateway(own_server.url)
    key = key_of(running.tenant)
    mine = bearer(await stored(own_connection, made_at, key))
    path = f"/v1/turns/{running.turn}"
    once, shared = [
        (await client.post(f"{made_at.url}{path}/tickets", json=body, headers=mine)).json()["events"]
        for body in ({}, {"is_shared": True})
    ]
    login = await client.post(f"{made_at.url}/v1/login", headers=mine)
    access = bearer(login.json()["access_token"])
    cookie = {"cookie": login.headers["set-cookie"].partition(";")[0]}
    urls = [(read_at.url + once, {}), (read_at.url + shared, {}), (f"{read_at.url}{path}/events", access)]
    async with (
        reading(client, urls[0][0]) as first,
        reading(client, urls[1][0]) as second,
        reading(client, urls[2][0], **access) as third,
    ):
        await ApiKeyStore(own_connection).revoke(key.record.id, int(time.time()))
        lasts = await asyncio.wait_for(asyncio.gather(first, second, third), 10)
    answers = [
        await client.get(url, headers={**headers, "last-event-id": last})
        for (url, headers), last in zip(urls, lasts, strict=True)
    ]
    answers += [await client.post(f"{gateway.url}/v1/login/refresh", headers=cookie) for gateway in (made_at, read_at)]
    assert [answer.status_code for answer in answers] == [401] * 5


async def test_an_access_tokens_stream_ends_with_it(
    own_server: NatsServer,
    own_connection: Connection,
    new_gateway: NewGateway,
    running: TurnKey,
    client: httpx2.AsyncClient,
) -> None:
    """And goes on with the next one and the last id."""
    gateway = await new_gateway(own_server.url)
    key = key_of(running.tenant)
    await stored(own_connection, gateway, key)
    signature = TokenSigner(await signing_secret(own_connection))
    short, following = (
        bearer(signature.sign(Access(key=key.record.id, until=int(time.time()) + life_s))) for life_s in (2, 60)
    )
    url = f"{gateway.url}/v1/turns/{running.turn}/events"
    async with reading(client, url, **short) as reader:
        last = await asyncio.wait_for(reader, 10)
    assert (await client.get(url, headers={**short, "last-event-id": last})).status_code == 401
    writer = Writer(TurnLog(own_connection), running)
    writer.chain = (await TurnLog(own_connection).turn(running)).chain
    await writer.say("Elbe")
    await writer.end()
    back = await client.get(url, headers={**following, "last-event-id": last})
    assert (back.status_code, "Elbe" in back.text, "Danube" in back.text) == (200, True, False)


async def test_nothing_may_more_than_the_key_it_was_made_with(
    own_server: NatsServer,
    own_connection: Connection,
    new_gateway: NewGateway,
    running: TurnKey,
    client: httpx2.AsyncClient,
) -> None:
    """A key that only reads logs in as one that only reads; one that may not read gets neither a ticket nor a login."""
    gateway = await new_gateway(own_server.url)
    reader, asker = key_of(running.tenant, "read"), key_of(running.tenant, "write")
    for key in (reader, asker):
        await stored(own_connection, gateway, key)
    login = await client.post(f"{gateway.url}/v1/login", headers=bearer(reader.secret))
    access = bearer(login.json()["access_token"])
    path = f"{gateway.url}/v1/turns/{running.turn}"
    may = [
        (await client.get(path, headers=access)).status_code,
        (await client.post(f"{path}/cancel", headers=access)).status_code,
        (await client.delete(path, headers=access)).status_code,
        (await client.post(f"{gateway.url}/v1/login", headers=bearer(asker.secret))).status_code,
        (await client.post(f"{path}/tickets", json={}, headers=bearer(asker.secret))).status_code,
    ]
    assert may == [200, 403, 403, 403, 403]


async def test_a_jwts_ticket_ends_with_the_jwt_and_a_jwt_logs_nobody_in(
    own_server: NatsServer, new_gateway: NewGateway, running: TurnKey, client: httpx2.AsyncClient
) -> None:
    """Nothing can revoke one, so that nothing made of it may outlive it."""
    gateway = await new_gateway(own_server.url, api_keys="", **JWT)
    now = int(time.time())
    claims = {"iss": JWT["jwt_issuer"], "aud": JWT["jwt_audience"], "sub": running.tenant, "exp": now + 300}
    mine = bearer(jwt.encode(claims, SECRET, algorithm="HS256"))
    path = f"{gateway.url}/v1/turns/{running.turn}"
    for body in ({}, {"is_shared": True, "life_s": 86400}):
        ticket = (await client.post(f"{path}/tickets", json=body, headers=mine)).json()
        assert ticket["begin_by"] <= ticket["until"] <= now + 300 + 30  # its leeway
        async with reading(client, gateway.url + ticket["events"]) as reader:
            assert not reader.done()
    refused = await client.post(f"{gateway.url}/v1/login", headers=mine)
    assert (refused.status_code, COOKIE in refused.headers.get("set-cookie", "")) == (400, False)
