"""A gateway without any feature: it stores and streams turns."""

import asyncio

import httpx2

from tailrace.gateway.app import app
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.serve import build
from tailrace.gateway.settings import Settings
from tailrace.proto.chain import Chain
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.flag import Flag
from tests.harness.turn_writer import Writer
from tests.integration.conftest import KEY, api_keys


async def test_a_turn_is_stored_once_and_streamed_without_any_feature(
    nats_url: str, connection: Connection, tenant: Tenant, log: TurnLog
) -> None:
    async with asyncio.TaskGroup() as group:
        settings = Settings(nats_url=nats_url, api_keys=api_keys(tenant), linger_s=0)
        gateway = build(settings, connection, group, Flag(), signer=TokenSigner(b"secret"))
        transport = httpx2.ASGITransport(app=send_deferred(app(gateway)))
        headers = {"x-api-key": KEY, "idempotency-key": "key"}
        async with httpx2.AsyncClient(transport=transport, base_url="http://x", headers=headers) as client:
            first, again = [await client.post("/v1/turns", json={"message": "hi"}) for _ in range(2)]
            assert (first.status_code, again.json()) == (202, first.json())
            writer = Writer(log, TurnKey(tenant, TurnId(first.json()["turn"])))
            [request] = await log.read_entries(ScopedKey.whole(writer.key))
            writer.chain = Chain(request.seq)
            await writer.begin("Hello")
            await writer.end()
            # The POST that is repeated streams the same turn.
            stream = await client.post(
                "/v1/turns?dialect=text", json={"message": "hi"}, headers={"accept": "text/event-stream"}
            )
            resumed = await client.get(f"/v1/turns/{writer.key.turn}/events?after={request.seq}")
    assert stream.status_code == 200
    assert stream.text.endswith("Hello")
    assert resumed.text.count("Hello") == 1
