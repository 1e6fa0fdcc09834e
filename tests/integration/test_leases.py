"""Leases of a durable consumer: one holder at a time, redelivery after expiry, nothing lost."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest
import pytest_asyncio

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.chain import START
from tailrace.proto.end_entry import build_end
from tailrace.proto.errors import LogMisconfigured, LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, Delivery, TurnLog, streams
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, TurnKey
from tests.conftest import BYTES_MAX
from tests.harness.turn_builder import attempt, request
from tests.harness.until import until

# As short as a renewal can be kept up on a busy machine.
ACK_WAIT_S = 0.5


@pytest_asyncio.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[NatsServer]:
    """A server of this test's own, whose generators' leases are short."""
    monkeypatch.setattr(streams, "GENERATOR_ACK_WAIT_S", ACK_WAIT_S)
    async with NatsServer(tmp_path) as server:
        yield server


@pytest_asyncio.fixture
async def connection(server: NatsServer) -> AsyncIterator[Connection]:
    connection = await Connection.open(server.url, "test")
    await streams.apply(connection, bytes_max=BYTES_MAX)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def deliveries(connection: Connection) -> Deliveries:
    return await Deliveries.open(connection, GENERATORS)


async def one(deliveries: Deliveries) -> Delivery:
    return (await until(deliveries.next))[0]


async def ask(log: TurnLog, tenant: Tenant) -> TurnKey:
    key = TurnKey(tenant, TurnId(new_id()))
    await log.append(key, START, request())
    return key


@pytest.mark.rule("R18")
async def test_a_request_is_delivered_once_and_gone_when_it_is_done(
    log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    """It names its turn and its entry; after the acknowledgement nothing is left to do."""
    key = await ask(log, tenant)
    delivery = await one(deliveries)
    assert (delivery.key, delivery.kind, delivery.times) == (key, "request", 1)
    assert delivery.seq == (await log.turn(key)).tail
    assert delivery.ack_wait_s == ACK_WAIT_S
    assert (await deliveries.backlog()).leased == 1
    await delivery.ack()
    await until(deliveries.is_drained)
    assert await deliveries.next() == []


async def test_who_waits_in_vain_is_back_soon(deliveries: Deliveries) -> None:
    """A process that is told to stop has to come round first, and `up` waits for two of them, one after the other."""
    began = asyncio.get_running_loop().time()
    assert await deliveries.next() == []
    assert asyncio.get_running_loop().time() - began < 0.9


@pytest.mark.rule("R18")
async def test_each_request_goes_to_one_of_many(
    connection: Connection, log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    """Two processes share a consumer; none gets what the other has."""
    other = await Deliveries.open(connection, GENERATORS)
    keys = {await ask(log, tenant) for _ in range(20)}
    taken = [delivery for _ in range(10) for delivery in (await one(deliveries), await one(other))]
    assert {delivery.key for delivery in taken} == keys
    assert {delivery.times for delivery in taken} == {1}


@pytest.mark.rule("R18")
async def test_what_nobody_keeps_comes_again(log: TurnLog, deliveries: Deliveries, tenant: Tenant) -> None:
    """A killed generator's turn is with another after the lease has run out, for ever and ever."""
    key = await ask(log, tenant)
    for times in (1, 2, 3):
        delivery = await one(deliveries)
        assert (delivery.key, delivery.times) == (key, times)


@pytest.mark.rule("R18")
async def test_what_is_kept_stays(log: TurnLog, deliveries: Deliveries, tenant: Tenant) -> None:
    """A lease is renewed while the turn runs, however long; the second holder comes after the last renewal."""
    await ask(log, tenant)
    delivery = await one(deliveries)
    loop = asyncio.get_running_loop()
    began = kept = loop.time()
    again = asyncio.create_task(one(deliveries))
    while kept - began < 3 * ACK_WAIT_S:
        assert not again.done()
        await delivery.renew()
        kept = loop.time()
        await asyncio.wait([again], timeout=ACK_WAIT_S / 4)
    assert (await again).times == 2
    assert loop.time() - kept > 0.8 * ACK_WAIT_S


@pytest.mark.rule("R18")
async def test_what_is_given_back_comes_at_once(log: TurnLog, deliveries: Deliveries, tenant: Tenant) -> None:
    """A generator that drains does not make its turns wait for the lease to run out."""
    await ask(log, tenant)
    began = asyncio.get_running_loop().time()
    await (await one(deliveries)).release()
    assert (await one(deliveries)).times == 2
    assert asyncio.get_running_loop().time() - began < ACK_WAIT_S


@pytest.mark.rule("R17")
async def test_an_old_holders_acknowledgement_ends_the_new_holders_lease(
    log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    """Why nobody acknowledges before the turn's `end` is stored or read: after this, no one would come again."""
    await ask(log, tenant)
    old = await one(deliveries)
    new = await one(deliveries)
    assert new.times == 2
    await old.ack()
    await until(deliveries.is_drained)


@pytest.mark.rule("R27")
async def test_persistence_is_given_requests_and_ends_only(
    connection: Connection, log: TurnLog, tenant: Tenant
) -> None:
    """The two entries at which a row changes; each stays until it is acknowledged."""
    recorder = await Deliveries.open(connection, PERSISTENCE)
    key = await ask(log, tenant)
    turn = await log.turn(key)
    chain = await log.append(key, turn.chain, attempt(turn.chain))
    await log.append(key, chain, build_end(await log.turn(key), "failed"))
    taken: list[Delivery] = []
    while len(taken) < 2:
        taken += await recorder.next(most=10)
    assert [(delivery.key, delivery.kind) for delivery in taken] == [(key, "request"), (key, "end")]
    backlog = await recorder.backlog()
    assert (backlog.waiting, backlog.leased) == (0, 2)
    for delivery in taken:
        await delivery.ack()
    await until(recorder.is_drained)


@pytest.mark.rule("R18")
async def test_deliveries_go_on_after_the_servers_death(
    server: NatsServer, connection: Connection, log: TurnLog, deliveries: Deliveries, tenant: Tenant
) -> None:
    """While it is away there are none; then what was leased and what is new both come, without anybody's doing."""
    first = await ask(log, tenant)
    await one(deliveries)
    await server.stop(SIGKILL)
    await until(lambda: not connection.is_up)
    assert await deliveries.next() == []
    await server.start()
    await until(lambda: connection.is_up)
    second = await ask(log, tenant)
    assert {(await one(deliveries)).key, (await one(deliveries)).key} == {first, second}


async def test_a_consumer_that_is_missing_is_not_a_server_that_is_away(
    server: NatsServer, connection: Connection
) -> None:
    """The one is mended by setting up the streams, the other by waiting."""
    with pytest.raises(LogMisconfigured, match="`tailrace streams`"):
        await Deliveries.open(connection, "nobody")
    await server.stop(SIGKILL)
    with pytest.raises(LogUnavailable):
        await Deliveries.open(connection, GENERATORS)
