"""The rights of each credential on a WebSocket. The connection ends with the credential."""

import asyncio
import json
import time
from contextlib import suppress

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import NewKey, new_key
from tailrace.gateway.http.scope import SCOPES, ScopeName
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection
from tests.features.responses_socket.test_responses_socket import raw, read_error
from tests.harness import jwts
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

CREATE = json.dumps({"type": "response.create", "model": "claude-haiku-5-5", "input": "Name a river."})


@pytest.fixture
def keys(own_connection: Connection) -> KeyStore:
    return KeyStore(own_connection)


@pytest.fixture
async def closed_gateway(own_server: NatsServer, new_gateway: NewGateway) -> Gateway:
    """A gateway without a generator that accepts stored keys and JWTs."""
    return await new_gateway(own_server.url, api_keys="", **jwts.settings())


async def store(keys: KeyStore, tenant: Tenant, *scopes: ScopeName) -> NewKey:
    made = new_key(tenant, now=int(time.time()), scopes=scopes or SCOPES)
    await keys.create(made.record)
    return made


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


async def status_of(gateway: Gateway, secret: str) -> int:
    """Returns the status of a handshake with this credential; 101 if the WebSocket opens."""
    try:
        async with raw(gateway.url, bearer(secret) if secret else {}):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@pytest.mark.rule("S1")
async def test_a_scope_permits_what_it_permits_over_http(
    closed_gateway: Gateway, keys: KeyStore, tenant: Tenant
) -> None:
    """`read` may follow a response and create none; a key without `read` may not connect."""
    reader, writer = await store(keys, tenant, "read"), await store(keys, tenant, "write")
    both = await store(keys, tenant, "read", "write")
    await until_known(closed_gateway, both)
    assert [await status_of(closed_gateway, one.secret) for one in (reader, writer, both)] == [101, 403, 101]
    assert await status_of(closed_gateway, "") == 401
    async with raw(closed_gateway.url, bearer(reader.secret)) as connection:
        for message in (CREATE, '{"type":"response.cancel","response_id":"resp_none"}'):
            await connection.send(message)
            assert await read_error(connection) == (403, "scope_missing", None)
        await connection.send('{"type":"response.steer","previous_response_id":"resp_none","input":"x"}')
        failed = json.loads(await connection.recv())
        assert (failed["type"], failed["error"]["code"]) == ("response.steer.failed", "scope_missing")
        await connection.send('{"type":"response.resume","response_id":"resp_none"}')
        assert (await read_error(connection))[1] != "scope_missing"
    async with raw(closed_gateway.url, bearer(both.secret)) as connection:
        await connection.send(CREATE)
        assert json.loads(await connection.recv())["type"] == "response.created"


async def until_known(gateway: Gateway, key: NewKey) -> None:
    """Waits until the gateway knows a stored key."""

    async def is_known() -> bool:
        return await status_of(gateway, key.secret) != 401

    await until(is_known)


@pytest.mark.rule("S1")
async def test_another_tenant_cannot_resume_cancel_or_steer(
    closed_gateway: Gateway, keys: KeyStore, tenant: Tenant
) -> None:
    mine, other = await store(keys, tenant), await store(keys, Tenant(f"{tenant}-other"))
    await until_known(closed_gateway, other)
    async with raw(closed_gateway.url, bearer(mine.secret)) as connection:
        await connection.send(CREATE)
        response_id = json.loads(await connection.recv())["response"]["id"]
        async with raw(closed_gateway.url, bearer(other.secret)) as theirs:
            for kind in ("response.resume", "response.cancel"):
                await theirs.send(json.dumps({"type": kind, "response_id": response_id}))
                known = await read_error(theirs)
                await theirs.send(json.dumps({"type": kind, "response_id": "resp_none"}))
                assert known == await read_error(theirs)
            errors = []
            for target in (response_id, "resp_none"):
                steer = {"type": "response.steer", "previous_response_id": target, "input": "x"}
                await theirs.send(json.dumps(steer))
                failed = json.loads(await theirs.recv())
                assert failed["type"] == "response.steer.failed"
                errors.append(failed["error"])
            assert errors[0] == errors[1]


async def test_a_ticket_opens_no_websocket(closed_gateway: Gateway, keys: KeyStore, tenant: Tenant) -> None:
    key = await store(keys, tenant)
    await until_known(closed_gateway, key)
    async with raw(closed_gateway.url, bearer(key.secret)) as connection:
        await connection.send(CREATE)
        turn = json.loads(await connection.recv())["response"]["id"].removeprefix("resp_")
    made = await closed_gateway.client.post(
        f"/v1/turns/{turn}/tickets", json={"is_shared": True}, headers=bearer(key.secret)
    )
    ticket = made.json()["ticket"]
    assert await status_of(closed_gateway, ticket) in (401, 404)
    with pytest.raises(InvalidStatus) as refused:
        async with raw(closed_gateway.url, {}, query=f"?ticket={ticket}"):
            pass
    assert refused.value.response.status_code in (401, 404)


async def test_a_revoked_key_ends_its_connection(closed_gateway: Gateway, keys: KeyStore, tenant: Tenant) -> None:
    key = await store(keys, tenant)
    await until_known(closed_gateway, key)
    async with raw(closed_gateway.url, bearer(key.secret)) as connection:
        await connection.send(CREATE)
        await connection.recv()
        await keys.revoke(key.record.id, now=int(time.time()))
        codes = []
        with suppress(ConnectionClosed):
            while True:
                event = json.loads(await asyncio.wait_for(connection.recv(), 10))
                codes += [event["error"]["code"]] if event["type"] == "error" else []
        assert set(codes) == {"credential_invalid"}
        assert connection.close_code == 1008
    assert await status_of(closed_gateway, key.secret) == 401
