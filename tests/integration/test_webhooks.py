"""Webhook delivery from a real log to real receivers: signatures, retries, order, kills.

Turns are written into the log by hand, as a generator ends them; persistence runs in the test's loop, or, where it is
killed, as a process. Only its waits are short.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

import msgspec
import pytest
from aiohttp.web import Request, Response
from prometheus_client import REGISTRY
from standardwebhooks import Webhook
from structlog.testing import capture_logs

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.persistence.webhooks import payload, sender, signature
from tailrace.proto import entries, subjects
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import Failure, Outcome, Stored
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq, SessionId, Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Deliveries, Delivery, TurnLog, streams
from tailrace.proto.nats.leases import consumer_backlog
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import PERSISTENCE, STREAM, WEBHOOKS, TurnKey
from tests.harness.persistence_in_loop import Persistence
from tests.harness.processes import persistence as process
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.harness.webhook_receiver import Got, Receiver, hang, status
from tests.integration.conftest import NewGateway
from tests.unit.test_ssrf import LOW_PORT, NO_PORT, NO_URL, NOT_HTTPS, NOT_PUBLIC

KEY = "a-key-that-only-this-test-has-0123"
OURS = Tenant("ours")
LEASE_S = 0.6
LEASE_S_MAX = streams.WEBHOOKS_ACK_WAIT_S
SETTINGS: dict[str, object] = {
    "webhook_key": KEY,
    "webhook_private_hosts": "127.0.0.1",
    "webhook_wait_s": 0.02,
    "webhook_timeout_s": 5.0,
}


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def ends(own_connection: Connection) -> Deliveries:
    """Drained once nobody is to be told any more."""
    return await Deliveries.open(own_connection, WEBHOOKS)


@asynccontextmanager
async def telling(server: NatsServer, tmp_path: Path, **given: object) -> AsyncIterator[Persistence]:
    async with Persistence(server.url, tmp_path / "tailrace.db", **SETTINGS | given) as persistence:
        yield persistence


async def write(
    log: TurnLog, webhook: str | None, *, session: str = "", tenant: Tenant = OURS, text: str = "Light scatters."
) -> TurnKey:
    """A turn that has ended; of a session of its own, if none is named."""
    writer = Writer(log, TurnKey(tenant, TurnId(new_id())))
    await writer.ask(webhook=webhook, session=SessionId(session or new_id()))
    await writer.begin(text)
    await writer.end()
    return writer.key


def given_up(reason: str) -> float:
    return REGISTRY.get_sample_value("tailrace_persistence_webhooks_given_up_total", {"reason": reason}) or 0.0


@pytest.mark.rule("R45")
async def test_an_ended_turn_is_posted_once_with_signature_and_record(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """A library of Standard Webhooks accepts it; its data is the record of GET."""
    async with telling(own_server, tmp_path):
        key = await write(own_log, receiver.url)
        await until(ends.is_drained)
    (got,) = receiver.got
    secret = signature.format_secret(signature.derive_secret(KEY.encode(), OURS))
    assert Webhook(secret).verify(got.body, dict(got.headers)) == got.told
    told = record_from_fold(key, await own_log.turn(key))
    assert msgspec.convert(got.told["data"], TurnRecord) == told
    assert got.told["type"] == "turn.completed"
    assert got.told["links"] == {"self": f"/v1/turns/{key.turn}"}
    assert got.headers["webhook-id"] == key.turn
    assert got.headers["content-type"] == "application/json"


async def test_a_turn_without_a_webhook_is_not_posted(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """Its end is acknowledged."""
    async with telling(own_server, tmp_path):
        await write(own_log, None)
        await until(ends.is_drained)
    assert receiver.got == []


async def test_a_tenants_default_webhook_gets_all_turns_of_the_tenant(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """Only that tenant's, signed with its secret; a turn's own webhook comes first."""
    theirs = Tenant("theirs")
    async with Receiver() as other, telling(own_server, tmp_path, webhook_urls=f"{theirs}={other.url}"):
        told = await write(own_log, None, tenant=theirs)
        await write(own_log, None)
        named = await write(own_log, receiver.url, tenant=theirs)
        await until(ends.is_drained)
        assert other.turns == [told.turn]
        assert receiver.turns == [named.turn]
        secret = signature.format_secret(signature.derive_secret(KEY.encode(), theirs))
        Webhook(secret).verify(other.got[0].body, dict(other.got[0].headers))


@pytest.mark.parametrize("outcome", ["cancelled", "failed"])
async def test_cancelled_and_failed_turns_are_posted(
    own_server: NatsServer, own_log: TurnLog, receiver: Receiver, tmp_path: Path, outcome: Outcome
) -> None:
    """With their partial text and the reason."""
    failure = Failure("backend_overloaded", "Claude is overloaded.") if outcome == "failed" else None
    writer = Writer(own_log, TurnKey(OURS, TurnId(new_id())))
    async with telling(own_server, tmp_path):
        await writer.ask(webhook=receiver.url)
        await writer.begin("Light")
        await writer.end(outcome, failure)
        await until(lambda: receiver.got)
    told = receiver.got[0].told
    assert (told["type"], told["data"]["text"]) == (f"turn.{outcome}", "Light")
    assert told["data"]["error"] == (msgspec.to_builtins(failure) if failure else None)


@pytest.mark.rule("R45")
async def test_a_failed_delivery_is_retried_with_the_same_id_and_body(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """After errors, redirects and silence, until a 2xx."""
    receiver.answers = [status(500), status(429), status(404), status(302, location=receiver.url), hang, status(503)]
    async with telling(own_server, tmp_path, webhook_timeout_s=0.2):
        key = await write(own_log, receiver.url)
        await until(ends.is_drained)
    assert receiver.turns == [key.turn] * 7
    assert len({got.body for got in receiver.got}) == 1


@pytest.mark.rule("S10")
async def test_a_redirect_to_a_private_address_is_not_followed_and_retried(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """For each redirect status."""
    heard: list[object] = []
    elsewhere = await asyncio.start_server(lambda reader, _: heard.append(reader), "127.0.0.1", 0)
    async with elsewhere:
        port = elsewhere.sockets[0].getsockname()[1]
        locations = [f"http://127.0.0.1:{port}/", f"//127.0.0.1:{port}/", f"http://localhost:{port}/latest/meta-data/"]
        receiver.answers = [status(number, location=locations[number % 3]) for number in (301, 302, 303, 307, 308)]
        async with telling(own_server, tmp_path, webhook_wait_s=0.001):
            key = await write(own_log, receiver.url)
            await until(ends.is_drained)
    assert receiver.turns == [key.turn] * 6
    assert heard == []


async def test_retry_after_is_respected(
    own_server: NatsServer, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """If it is longer than our wait."""
    receiver.answer = status(429, **{"retry-after": "120"})
    with capture_logs() as lines:
        async with telling(own_server, tmp_path):
            await write(own_log, receiver.url)
            (waits,) = await until(lambda: [line for line in lines if line["event"] == "webhook will be retried"])
    assert (waits["wait_s"], waits["why"]) == (120.0, "the receiver answered 429")


@pytest.mark.rule("R45")
async def test_410_ends_a_webhook(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """The session's next webhook is attempted."""
    receiver.answers = [status(410)]
    before = given_up("gone")
    async with telling(own_server, tmp_path):
        keys = [await write(own_log, receiver.url, session="one") for _ in range(2)]
        await until(ends.is_drained)
    assert receiver.turns == [key.turn for key in keys]
    assert given_up("gone") == before + 1


@pytest.mark.rule("R45")
async def test_webhooks_of_a_session_are_in_order_and_delay_no_other_session(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """The second one waits while the first one is retried."""
    let = asyncio.Event()

    async def not_yet(got: Got, _: Request) -> Response:
        return Response(status=204 if let.is_set() or got.turn != first.turn else 500)

    receiver.answer = not_yet
    async with telling(own_server, tmp_path):
        first = await write(own_log, receiver.url, session="one")
        second = await write(own_log, receiver.url, session="one")
        others = [await write(own_log, receiver.url) for _ in range(3)]
        # The same name, and another session: names are a tenant's own.
        others.append(await write(own_log, receiver.url, session="one", tenant=Tenant("theirs")))
        await until(lambda: {other.turn for other in others} <= set(receiver.turns))
        await until(lambda: receiver.turns.count(first.turn) > 3)
        assert second.turn not in receiver.turns
        let.set()
        await until(ends.is_drained)
    assert receiver.turns.index(second.turn) > max(at for at, turn in enumerate(receiver.turns) if turn == first.turn)
    assert receiver.turns.count(second.turn) == 1


async def test_an_undelivered_webhook_expires(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """Then the session's next one is sent. Each is attempted at least once."""
    receiver.answer = status(500)
    before = given_up("expired")
    keys = [await write(own_log, receiver.url, session="one") for _ in range(2)]
    async with telling(own_server, tmp_path, webhook_give_up_s=0.001):
        await until(ends.is_drained)
    assert receiver.turns == [key.turn for key in keys]
    assert given_up("expired") == before + 2


async def test_a_webhook_to_a_forbidden_address_is_given_up_at_once(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """For example after the operator has changed the allowed private hosts."""
    before = given_up("refused")
    async with telling(own_server, tmp_path):
        await write(own_log, f"http://127.0.0.2:{receiver.port}/", session="one")
        key = await write(own_log, receiver.url, session="one")
        await until(ends.is_drained)
    assert receiver.turns == [key.turn]
    assert given_up("refused") == before + 1


async def test_an_unexpected_error_ends_one_webhook_only(
    own_server: NatsServer,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is logged, and the session continues."""
    whole, before = payload.render, given_up("error")

    def breaks_once(told: TurnRecord) -> bytes:
        monkeypatch.setattr(payload, "render", whole)
        raise KeyError(told.turn)

    monkeypatch.setattr(payload, "render", breaks_once)
    async with telling(own_server, tmp_path):
        await write(own_log, receiver.url, session="one")
        key = await write(own_log, receiver.url, session="one")
        await until(ends.is_drained)
    assert receiver.turns == [key.turn]
    assert given_up("error") == before + 1


async def test_a_tenant_whose_receiver_is_away_leaves_room_for_others(
    own_server: NatsServer,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it has beyond its share is given up; what waits is told when it is back."""
    monkeypatch.setattr(sender, "WAITING_TENANT_MAX", 2)
    before = given_up("tenant_limit")
    receiver.answer = status(500)
    async with Receiver() as other, telling(own_server, tmp_path):
        waiting = [await write(own_log, receiver.url) for _ in range(2)]
        await until(lambda: len(set(receiver.turns)) == 2)
        await write(own_log, receiver.url)
        theirs = await write(own_log, other.url, tenant=Tenant("theirs"))
        await until(lambda: other.got)
        assert other.turns == [theirs.turn]
        assert given_up("tenant_limit") == before + 1
        receiver.answer = status(204)
        await until(ends.is_drained)
        # And then there is room again.
        waiting += [await write(own_log, receiver.url) for _ in range(2)]
        await until(ends.is_drained)
    assert set(receiver.turns) == {key.turn for key in waiting}


async def test_at_the_limit_of_waiting_webhooks_others_are_received_later(
    own_server: NatsServer,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """When earlier ones are done."""
    monkeypatch.setattr(sender, "WAITING_MAX", 2)
    receiver.answer = status(500)
    keys = [await write(own_log, receiver.url) for _ in range(5)]
    async with telling(own_server, tmp_path):
        await until(lambda: len(receiver.got) > 4)
        assert set(receiver.turns) == {key.turn for key in keys[:2]}
        receiver.answer = status(204)
        await until(ends.is_drained)
    assert set(receiver.turns) == {key.turn for key in keys}


async def test_a_slow_receiver_delays_only_its_own_tenant(
    own_server: NatsServer, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """The number of connections a tenant is limited."""
    receiver.answer = hang
    async with Receiver() as other, telling(own_server, tmp_path, webhook_timeout_s=60.0):
        for _ in range(sender.CONNECTIONS + 3):
            await write(own_log, receiver.url)
        await until(lambda: len(receiver.got) == sender.CONNECTIONS)
        await write(own_log, other.url, tenant=Tenant("theirs"))
        await until(lambda: other.got)
        assert len(receiver.got) == sender.CONNECTIONS


@pytest.mark.rule("R45")
async def test_a_deleted_turn_is_not_posted(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """Neither at the first attempt nor at a retry; the session's other turns are."""
    receiver.answer = status(500)
    purged = await write(own_log, receiver.url)
    await own_log.purge(purged)
    async with telling(own_server, tmp_path):
        first = await write(own_log, receiver.url, session="one")
        await until(lambda: receiver.turns.count(first.turn) > 1)
        second = await write(own_log, receiver.url, session="one")
        await own_log.purge(first)
        await until(lambda: second.turn in receiver.turns)
        receiver.answer = status(204)
        await until(ends.is_drained)
    assert purged.turn not in receiver.turns


@pytest.mark.rule("R45")
async def test_the_end_that_is_a_fork_is_told_to_nobody(
    own_server: NatsServer,
    own_connection: Connection,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    """PROTOCOL R11: it is skipped, and the turn's own end is told, once."""
    writer = Writer(own_log, TurnKey(OURS, TurnId(new_id())))
    async with telling(own_server, tmp_path):
        await writer.ask(webhook=receiver.url)
        await writer.begin("Light")
        turn = await own_log.turn(writer.key)
        fork = msgspec.structs.replace(build_end(turn, "cancelled"), prev=Seq(1))
        await own_connection.jetstream.publish(subjects.entry(writer.key, "end"), entries.encode(fork))
        await until(ends.is_drained)
        assert receiver.got == []
        await writer.end()
        await until(ends.is_drained)
    assert receiver.turns == [writer.key.turn]
    assert receiver.got[0].told["type"] == "turn.completed"


async def test_without_a_signing_key_webhooks_wait_in_the_log(
    own_server: NatsServer,
    own_connection: Connection,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    """They are sent when a key is set."""
    async with telling(own_server, tmp_path, webhook_key=""):
        key = await write(own_log, receiver.url)
        await until((await Deliveries.open(own_connection, PERSISTENCE)).is_drained)
        assert not await ends.is_drained()
    async with telling(own_server, tmp_path):
        await until(ends.is_drained)
    assert receiver.turns == [key.turn]


async def shorten_lease(connection: Connection) -> None:
    """What a killed process had leased comes again soon, and not after ten seconds."""
    (config,) = [one for one in streams.consumers() if one.durable_name == WEBHOOKS]
    await connection.jetstream.add_consumer(STREAM, config.evolve(ack_wait=LEASE_S))


def environ() -> dict[str, object]:
    """The settings of a process of its own."""
    return {f"TAILRACE_{name.upper()}": value for name, value in SETTINGS.items()}


async def test_what_is_newer_does_not_overtake_what_a_dead_process_had(
    own_server: NatsServer,
    own_connection: Connection,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    """The server hands out the newer ones at once, and the others when their leases have run out."""
    await shorten_lease(own_connection)
    dead = await Deliveries.open(own_connection, WEBHOOKS)
    keys = [await write(own_log, receiver.url, session="one") for _ in range(3)]
    had: list[Delivery] = []
    while len(had) < len(keys):
        had += await dead.next(len(keys))
    keys += [await write(own_log, receiver.url, session="one") for _ in range(3)]
    async with telling(own_server, tmp_path):
        await until(ends.is_drained)
    assert receiver.turns == [key.turn for key in keys]


async def test_a_stopped_process_returns_its_entries_at_once(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """In log order; the next process does not wait for leases to expire."""
    receiver.answer = hang
    async with telling(own_server, tmp_path):
        keys = [await write(own_log, receiver.url, session="one") for _ in range(3)]
        await until(lambda: receiver.got)
        await until(lambda: leased(own_connection, 3))
    following = await Deliveries.open(own_connection, WEBHOOKS)
    back: list[Delivery] = []
    async with asyncio.timeout(LEASE_S_MAX / 2):
        while len(back) < len(keys):
            back += await following.next(len(keys))
    assert [delivery.key for delivery in back] == keys


async def leased(connection: Connection, count: int) -> bool:
    return (await consumer_backlog(connection, WEBHOOKS)).leased == count


async def test_a_waiting_webhook_keeps_its_lease(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """It is renewed during the delivery and while it waits."""
    await shorten_lease(own_connection)
    receiver.answer = hang
    async with telling(own_server, tmp_path):
        for _ in range(2):
            await write(own_log, receiver.url, session="one")
        await until(lambda: receiver.got)
        other = await Deliveries.open(own_connection, WEBHOOKS)
        # Each waits for half a second: three leases.
        assert [await other.next(2) for _ in range(4)] == [[], [], [], []]


@pytest.mark.rule("R45")
@pytest.mark.parametrize("number", [SIGKILL, SIGTERM])
async def test_killed_at_any_moment_everything_is_told_by_the_next_in_order(
    own_server: NatsServer,
    own_connection: Connection,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
    number: Signals,
) -> None:
    """One is in the receiver's hands, others of its session wait, and more come while nobody is there.

    Nothing newer overtakes what the dead process had leased; what was taken is not told again.
    """
    await shorten_lease(own_connection)
    async with process(tmp_path, own_server.url, **environ()) as dying:
        taken = await write(own_log, receiver.url, session="one")
        await until(ends.is_drained)
        receiver.answer = hang
        waiting = [await write(own_log, receiver.url, session="one") for _ in range(3)]
        await until(lambda: waiting[0].turn in receiver.turns)
        await dying.stop(number)
        waiting += [await write(own_log, receiver.url, session="one") for _ in range(3)]
        receiver.answer = status(204)
        await dying.start()
        await until(ends.is_drained, 20)
    told = [key.turn for key in waiting]
    # The one that hung was told twice, under one id: at least once is what can be promised.
    assert receiver.turns == [taken.turn, told[0], *told]


async def test_killed_again_and_again_a_session_is_told_in_order(
    own_server: NatsServer,
    own_connection: Connection,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
) -> None:
    """After each killing the receiver has seen the turns in their order, each as often as it was not heard."""
    await shorten_lease(own_connection)
    keys = [await write(own_log, receiver.url, session=f"session-{number % 2}") for number in range(8)]
    # So many are taken in each life, and one at least is in the receiver's hands when it ends.
    receiver.answers, receiver.answer, seen = [status(204)] * 2, hang, 0
    async with process(tmp_path, own_server.url, **environ()) as dying:
        for taken in (2, 4, 6):
            await until(lambda seen=seen: len(receiver.got) > seen + 2, 20)  # type: ignore[misc]
            await dying.stop(SIGKILL)
            assert len(set(receiver.turns)) > taken
            receiver.answers, seen = [status(204)] * 2, len(receiver.got)
            await dying.start()
        receiver.answer = status(204)
        await until(ends.is_drained, 20)
    for session in (keys[::2], keys[1::2]):
        mine = [turn for turn in receiver.turns if turn in {key.turn for key in session}]
        assert list(dict.fromkeys(mine)) == [key.turn for key in session]
        places = {str(key.turn): place for place, key in enumerate(session)}
        assert mine == sorted(mine, key=lambda turn: places[turn])


async def test_webhooks_continue_after_a_restart_of_nats_server(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """Leases are stored on its disk."""
    receiver.answer = status(500)
    async with telling(own_server, tmp_path):
        keys = [await write(own_log, receiver.url, session="one") for _ in range(2)]
        await until(lambda: receiver.got)
        await own_server.stop(SIGKILL)
        receiver.answer = status(204)
        await own_server.start()
        await until(lambda: keys[1].turn in receiver.turns, 20)
    # An acknowledgement that the server was about to write is lost with it, and its turn told again.
    assert list(dict.fromkeys(receiver.turns)) == [key.turn for key in keys]


async def test_what_cannot_be_read_is_told_later_in_order(
    own_server: NatsServer,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The log hands out an end and does not answer what was asked: it is given back with all that came after it."""
    monkeypatch.setattr(sender, "LOG_WAIT_S", 0.01)
    read = TurnLog.replay
    failed: list[TurnKey] = []

    async def fails_at_times(log: TurnLog, key: TurnKey, after: Seq = BEFORE_FIRST, limit: int = 512) -> list[Stored]:
        if len(failed) < 3 and key == keys[len(failed)]:
            failed.append(key)
            raise LogUnavailable("the log does not answer")
        return await read(log, key, after, limit)

    keys = [await write(own_log, receiver.url, session="one") for _ in range(4)]
    monkeypatch.setattr(TurnLog, "replay", fails_at_times)
    async with telling(own_server, tmp_path):
        await until(ends.is_drained)
    assert failed == keys[:3]
    assert receiver.turns == [key.turn for key in keys]


async def test_a_lease_that_ran_out_is_not_told_twice(
    own_server: NatsServer,
    own_connection: Connection,
    ends: Deliveries,
    own_log: TurnLog,
    receiver: Receiver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose renewals are lost gets the same end again, while it is being told and while that is being acknowledged."""
    await shorten_lease(own_connection)
    acknowledge, take = Delivery.ack, Deliveries.next
    taken: list[Delivery] = []

    async def slow(_: Got, __: Request) -> Response:
        await until(lambda: delivered(own_connection, 3))
        return Response(status=204)

    async def counted(deliveries: Deliveries, most: int = 1) -> list[Delivery]:
        taken.extend(found := await take(deliveries, most))
        return found

    async def late(delivery: Delivery) -> None:
        # One that is under way while it is acknowledged is told again: webhooks come at least once.
        await until(lambda: len(taken) >= 5)
        await acknowledge(delivery)

    monkeypatch.setattr(Deliveries, "next", counted)
    monkeypatch.setattr(Delivery, "renew", lost)
    monkeypatch.setattr(Delivery, "ack", late)
    receiver.answer = slow
    async with telling(own_server, tmp_path):
        key = await write(own_log, receiver.url)
        await until(ends.is_drained)
        # Nothing is held any more, and no room taken.
        await until(lambda: REGISTRY.get_sample_value("tailrace_persistence_webhooks_waiting") == 0)
    assert receiver.turns == [key.turn]


async def lost(_: Delivery) -> None:
    """A renewal that never arrives."""


async def delivered(connection: Connection, times: int) -> bool:
    """Whether ends were handed out that often; each time but the first because a lease had run out."""
    info = await connection.jetstream.consumer_info(STREAM, WEBHOOKS)
    return info.delivered is not None and info.delivered.consumer_seq >= times


async def test_no_url_of_a_receiver_is_logged(
    own_server: NatsServer, ends: Deliveries, own_log: TurnLog, receiver: Receiver, tmp_path: Path
) -> None:
    """It may contain a secret."""
    canary, text = "canary-of-a-url", "canary of a text"
    receiver.answers = [status(500), status(204), status(410)]
    urls = [f"{receiver.url}?token={canary}"] * 2 + [f"http://127.0.0.2/{canary}", f"http://127.0.0.1:1/{canary}"]
    async with process(tmp_path, own_server.url, **environ(), TAILRACE_WEBHOOK_GIVE_UP_S=0.5) as told:
        for url in urls:
            await write(own_log, url, text=text)
        await until(ends.is_drained, 20)
        printed = told.printed.read_text()
    assert [len(told.said(event)) for event in ("webhook delivered", "webhook given up")] == [1, 3]
    assert "canary" not in printed
    assert KEY not in printed


async def test_a_turn_is_submitted_with_a_webhook(
    nats_server: NatsServer, new_gateway: NewGateway, log: TurnLog, tenant: Tenant
) -> None:
    """It is in the request and not in any record."""
    gateway = await new_gateway(nats_server.url, webhooks=True, webhook_private_hosts="hooks.internal")
    for url in ("https://example.com/hook?secret=s", "http://hooks.internal:9000/hook"):
        answer = await gateway.client.post("/v1/turns", json={"message": "Why?", "webhook": url})
        assert answer.status_code == 202, answer.text
        key = TurnKey(tenant, TurnId(answer.json()["turn"]))
        request = (await log.turn(key)).request
        assert request is not None
        assert request.webhook == url
        assert url not in (await gateway.client.get(f"/v1/turns/{key.turn}")).text


@pytest.mark.rule("S10")
@pytest.mark.parametrize("url", [*NO_URL, *NO_PORT, *LOW_PORT, *NOT_HTTPS, *NOT_PUBLIC])
async def test_an_invalid_webhook_url_is_refused(nats_server: NatsServer, new_gateway: NewGateway, url: str) -> None:
    """400 with the field's name, and no turn."""
    gateway = await new_gateway(nats_server.url, webhooks=True)
    answer = await gateway.client.post("/v1/turns", json={"message": "Why?", "webhook": url})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["code"], "`webhook`" in error["message"]) == ("request_invalid", True)


async def test_a_webhook_is_refused_when_none_are_sent(nats_server: NatsServer, new_gateway: NewGateway) -> None:
    """The message names the setting."""
    gateway = await new_gateway(nats_server.url)
    answer = await gateway.client.post("/v1/turns", json={"message": "Why?", "webhook": "https://example.com/"})
    assert answer.status_code == 400
    assert "TAILRACE_WEBHOOKS" in answer.json()["error"]["message"]
