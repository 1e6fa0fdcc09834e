"""Leases of a durable consumer: one holder at a time, renewal, redelivery after expiry and after a restart."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.chain import START
from tailrace.proto.end_entry import build_end
from tailrace.proto.errors import LogMisconfigured, LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, Delivery, TurnLog, stream_configs, streams
from tailrace.proto.nats.leases import stored_at
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, WEBHOOKS, TurnKey
from tests.conftest import BYTES_MAX
from tests.harness.turn_builder import attempt, request
from tests.harness.until import until

# Shorter leases could expire between two renewals on a slow machine.
ACK_WAIT_S = 0.5


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    monkeypatch.setattr(stream_configs, "GENERATOR_ACK_WAIT_S", ACK_WAIT_S)
    async with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture
async def connection(server: NatsServer) -> AsyncIterator[Connection]:
    """A connection to a server where generators have short leases."""
    connection = await Connection.open(server.url, "test")
    await streams.apply(connection, bytes_max=BYTES_MAX)
    yield connection
    await connection.close()


@pytest.fixture
async def deliveries(connection: Connection) -> Deliveries:
    return await Deliveries.open(connection, GENERATORS)


async def one(deliveries: Deliveries) -> Delivery:
    return (await until(deliveries.next))[0]


async def ask(log: TurnLog, tenant: Tenant) -> TurnKey:
    key = TurnKey(tenant, TurnId(new_id()))
    await log.append(key, START, request())
    return key


@pytest.mark.rule("R18")
async def test_an_acknowledged_request_is_not_delivered_again(
    log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    key = await ask(log, tenant)
    delivery = await one(deliveries)
    assert (delivery.key, delivery.kind, delivery.times) == (key, "request", 1)
    stored = await log.read_turn(key)
    assert (delivery.seq, delivery.at, delivery.ack_wait_s) == (stored.tail, stored.asked_at, ACK_WAIT_S)
    assert (await deliveries.backlog()).leased == 1
    await delivery.ack()
    await until(deliveries.is_drained)
    # A process that is stopped must not wait longer for deliveries.
    async with asyncio.timeout(0.9):
        assert await deliveries.next() == []


@pytest.mark.parametrize("reply", ["{}.1.7.3.{}.0", "hub.ACCHASH.{}.1.7.3.{}.0", "hub.ACCHASH.{}.1.7.3.{}.0.random"])
def test_the_time_of_a_delivery_is_in_whole_microseconds(reply: str) -> None:
    """A float of seconds would make it 656,815 microseconds. Reads of the log cut off the nanoseconds."""
    at = stored_at("$JS.ACK." + reply.format("TURNS.generators", "1795388462656814999"))
    assert at.isoformat() == "2026-11-22T23:01:02.656814+00:00"


@pytest.mark.rule("R18")
async def test_each_request_is_delivered_to_one_process(
    connection: Connection, log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    other = await Deliveries.open(connection, GENERATORS)
    keys = {await ask(log, tenant) for _ in range(20)}
    delivered = [delivery for _ in range(10) for delivery in (await one(deliveries), await one(other))]
    assert {delivery.key for delivery in delivered} == keys
    assert {delivery.times for delivery in delivered} == {1}


@pytest.mark.rule("R18")
async def test_an_expired_lease_is_delivered_again_each_time(
    log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    key = await ask(log, tenant)
    for times in (1, 2, 3):
        delivery = await one(deliveries)
        assert (delivery.key, delivery.times) == (key, times)


@pytest.mark.rule("R18")
async def test_a_renewed_lease_is_not_delivered_again(log: TurnLog, deliveries: Deliveries, tenant: Tenant) -> None:
    await ask(log, tenant)
    delivery = await one(deliveries)
    now = asyncio.get_running_loop().time
    began = renewed_at = now()
    again = asyncio.create_task(one(deliveries))
    while renewed_at - began < 3 * ACK_WAIT_S:
        assert not again.done()
        await delivery.renew()
        renewed_at = now()
        await asyncio.wait([again], timeout=ACK_WAIT_S / 4)
    assert (await again).times == 2
    assert now() - renewed_at > 0.8 * ACK_WAIT_S


@pytest.mark.rule("R18")
async def test_a_released_lease_is_delivered_at_once(log: TurnLog, deliveries: Deliveries, tenant: Tenant) -> None:
    await ask(log, tenant)
    delivery = await one(deliveries)
    async with asyncio.timeout(ACK_WAIT_S):
        await delivery.release()
        assert (await one(deliveries)).times == 2


@pytest.mark.rule("R17")
async def test_an_acknowledgement_of_an_old_holder_ends_the_lease_of_the_new_one(
    log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    """Therefore a generator acknowledges only after it has stored or read the turn's end."""
    await ask(log, tenant)
    old, new = await one(deliveries), await one(deliveries)
    assert new.times == 2
    await old.ack()
    await until(deliveries.is_drained)


@pytest.mark.rule("R27")
async def test_persistence_gets_requests_and_ends_only(connection: Connection, log: TurnLog, tenant: Tenant) -> None:
    recorder = await Deliveries.open(connection, PERSISTENCE)
    key = await ask(log, tenant)
    turn = await log.read_turn(key)
    chain = await log.append(key, turn.chain, attempt(turn.chain))
    await log.append(key, chain, build_end(await log.read_turn(key), "failed"))
    delivered: list[Delivery] = []
    while len(delivered) < 2:
        delivered += await recorder.next(most=10)
    assert [(delivery.key, delivery.kind) for delivery in delivered] == [(key, "request"), (key, "end")]
    (of_webhook,) = await (await Deliveries.open(connection, WEBHOOKS)).next(most=10)
    assert [len(delivery.take_entry()) for delivery in [*delivered, of_webhook]] == [1, 1, 0]
    backlog = await recorder.backlog()
    assert (backlog.waiting, backlog.leased) == (0, 2)
    for delivery in delivered:
        await delivery.ack()
    await until(recorder.is_drained)


@pytest.mark.rule("R18")
async def test_deliveries_continue_after_a_restart_of_the_server(
    server: NatsServer, connection: Connection, log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    """Leased and new requests are both delivered."""
    first = await ask(log, tenant)
    await one(deliveries)
    await server.stop(SIGKILL)
    await until(lambda: not connection.is_up)
    assert await deliveries.next() == []
    await server.start()
    await until(lambda: connection.is_up)
    second = await ask(log, tenant)
    assert {(await one(deliveries)).key, (await one(deliveries)).key} == {first, second}


async def test_a_missing_consumer_and_an_unreachable_server_are_different_errors(
    server: NatsServer, connection: Connection
) -> None:
    with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
        await Deliveries.open(connection, "unknown")
    await server.stop(SIGKILL)
    with pytest.raises(LogUnavailable):
        await Deliveries.open(connection, GENERATORS)
