"""Webhook delivery from a real log to real receivers: signatures, retries, order, leases, kills and stops.

The turns are written into the log directly. Persistence runs in the test's event loop with short waits, or as a process
where it is killed.
"""

import asyncio
import functools
import gc
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals
from typing import NamedTuple

import msgspec
import pytest
from aiohttp.web import Request, Response
from prometheus_client import REGISTRY
from standardwebhooks import Webhook
from structlog.testing import capture_logs
from structlog.types import EventDict

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.webhooks import payload, persistence, sender, signature
from tailrace.features.webhooks.marks import Marks
from tailrace.proto import entries, subjects
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import StoredEntry
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.fold import Turn
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey, child_id, new_id
from tailrace.proto.nats import Connection, Deliveries, Delivery, Tombstones, TurnLog, stream_configs
from tailrace.proto.nats.leases import Mark
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.proto.subjects import STREAM, WEBHOOKS
from tests.features.webhooks.test_ssrf import LOW_PORT, NO_PORT, NO_URL, NOT_HTTPS, NOT_PUBLIC
from tests.harness import processes
from tests.harness.generator_in_loop import shorten_lease
from tests.harness.lossy_link import LossyLink
from tests.harness.persistence_in_loop import Persistence
from tests.harness.postgresql import PostgreSQLServer
from tests.harness.processes import Process
from tests.harness.turn_writer import OURS, Writer, new_writer, write_turn
from tests.harness.until import until
from tests.harness.webhook_receiver import Answer, ReceivedWebhook, Receiver, answer_after, answer_with, hang
from tests.integration.conftest import NewGateway

KEY = "a-key-that-only-this-test-has-0123"
THEIRS = Tenant("theirs")
LEASE_S = 0.6
SETTINGS: dict[str, object] = {
    "webhook_key": KEY,
    "webhook_private_hosts": "127.0.0.1",
    "webhook_wait_s": 0.02,
    "webhook_timeout_s": 5.0,
}


class WebhookSystem(NamedTuple):
    """The log of a nats-server of the test's own, and the consumer of the webhooks."""

    server: NatsServer
    connection: Connection
    log: TurnLog
    ends: Deliveries
    folder: Path

    def persistence(self, **settings: object) -> AbstractAsyncContextManager[Persistence]:
        return Persistence(self.server.url, self.folder / "tailrace.db", **SETTINGS | settings)

    def process(self, **environ: object) -> Process:
        given = {f"TAILRACE_{name.upper()}": value for name, value in SETTINGS.items()}
        return processes.persistence(self.folder, self.server.url, **given | environ)

    async def write(
        self,
        webhook: str | None,
        *,
        session: str = "",
        tenant: Tenant = OURS,
        text: str = "Light scatters.",
        store: bool = True,
    ) -> TurnKey:
        """Writes a completed turn; in a session of its own if none is given."""
        request = {"webhook": webhook, "session": session or new_id(), "store": store}
        return await write_turn(self.log, text, tenant=tenant, **request)

    async def write_session(self, webhook: str, count: int) -> list[TurnKey]:
        return [await self.write(webhook, session="one") for _ in range(count)]

    async def delete(self, key: TurnKey) -> None:
        """Deletes a turn from the log, with the tombstone that persistence sets."""
        await Tombstones(self.connection).put([key])
        await self.log.purge(key)

    async def wait_until_drained(self) -> None:
        """Waits until no webhook is waiting or being delivered."""
        await until(self.ends.is_drained, 20)

    async def shorten_lease(self) -> None:
        await shorten_lease(self.connection, LEASE_S, WEBHOOKS)


@pytest.fixture
async def own(own_server: NatsServer, own_connection: Connection, own_log: TurnLog, tmp_path: Path) -> WebhookSystem:
    return WebhookSystem(own_server, own_connection, own_log, await Deliveries.open(own_connection, WEBHOOKS), tmp_path)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


def count_given_up(reason: str) -> float:
    return REGISTRY.get_sample_value("tailrace_persistence_webhooks_given_up_total", {"reason": reason}) or 0.0


def turns(keys: list[TurnKey]) -> list[str]:
    return [key.turn for key in keys]


@pytest.mark.rule("R45")
async def test_an_ended_turn_is_posted_once_with_signature_and_record(own: WebhookSystem, receiver: Receiver) -> None:
    """To the turn's webhook, else to the default webhook of its tenant, else nowhere.

    A library of Standard Webhooks accepts the signature of the tenant; the data is the record of GET.
    """
    async with Receiver() as default, own.persistence(webhook_urls=f"{THEIRS}={default.url}"):
        key = await own.write(receiver.url)
        await own.write(None)
        theirs = await own.write(None, tenant=THEIRS)
        # It leaves nothing behind, also not there.
        await own.write(None, tenant=THEIRS, store=False)
        named = await own.write(receiver.url, tenant=THEIRS)
        await own.wait_until_drained()
    assert sorted(receiver.turns) == sorted(turns([key, named]))
    assert default.turns == [theirs.turn]
    (webhook,) = [webhook for webhook in receiver.received if webhook.turn == key.turn]
    for tenant, one in ((OURS, webhook), (THEIRS, default.received[0])):
        secret = signature.format_secret(signature.derive_secret(KEY.encode(), tenant))
        assert Webhook(secret).verify(one.body, dict(one.headers)) == one.payload
    assert msgspec.convert(webhook.payload["data"], TurnRecord) == record_from_fold(
        key, await own.log.read_turn(ScopedKey.whole(key))
    )
    assert webhook.payload["type"] == "turn.completed"
    assert webhook.payload["links"] == {"self": f"/v1/turns/{key.turn}"}
    assert webhook.headers["content-type"] == "application/json"


async def test_without_a_key_ends_wait_in_the_log_and_a_first_key_delivers_them(
    own: WebhookSystem, receiver: Receiver
) -> None:
    """No alert counts them, and they leave the log as any other entry."""
    before = REGISTRY.get_sample_value("tailrace_persistence_webhooks_waiting")
    async with own.persistence(webhook_key=""):
        purged, kept = [await own.write(receiver.url) for _ in range(2)]
        await until(lambda: has_backlog(own, 2, 0))
        await own.log.purge(purged)
        await until(lambda: has_backlog(own, 1, 0))
        assert REGISTRY.get_sample_value("tailrace_persistence_webhooks_waiting") == before
    assert receiver.turns == []
    async with own.persistence():
        await own.wait_until_drained()
    assert receiver.turns == turns([kept])


async def has_backlog(own: WebhookSystem, waiting: int, leased: int) -> bool:
    """Returns whether the consumer has so many undelivered ends, and so many delivered ones."""
    backlog = await own.ends.backlog()
    return (backlog.waiting, backlog.leased) == (waiting, leased)


@pytest.mark.rule("R45")
@pytest.mark.rule("S10")
async def test_a_failed_delivery_is_retried_with_the_same_id_and_body(own: WebhookSystem, receiver: Receiver) -> None:
    """After errors, silence and redirects, which are not followed, until a 2xx."""
    connections: list[object] = []
    private = await asyncio.start_server(lambda reader, _: connections.append(reader), "127.0.0.1", 0)
    async with private:
        port = private.sockets[0].getsockname()[1]
        locations = [f"http://127.0.0.1:{port}/", f"//127.0.0.1:{port}/", f"http://localhost:{port}/latest/meta-data/"]
        receiver.answers = [
            *map(answer_with, (500, 429, 404, 503)),
            hang,
            answer_with(302, location=receiver.url),
            *(answer_with(number, location=locations[number % 3]) for number in (301, 302, 303, 307, 308)),
        ]
        async with own.persistence(webhook_timeout_s=0.2, webhook_wait_s=0.001):
            key = await own.write(receiver.url)
            await own.wait_until_drained()
    assert receiver.turns == [key.turn] * 12
    assert len({webhook.body for webhook in receiver.received}) == 1
    assert connections == []


async def test_retry_after_is_respected_if_it_is_longer_than_the_back_off(
    own: WebhookSystem, receiver: Receiver
) -> None:
    receiver.answer = answer_with(429, **{"retry-after": "120"})
    with capture_logs() as lines:
        async with own.persistence():
            await own.write(receiver.url)
            (retry,) = await until(lambda: [line for line in lines if line["event"] == "webhook will be retried"])
    assert retry["wait_s"] == 120.0


@pytest.mark.rule("R45")
@pytest.mark.parametrize("reason", ["gone", "expired", "refused", "error"])
async def test_a_webhook_is_given_up_and_its_session_continues(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """At 410, after webhook_give_up_s seconds, for an address that is not allowed any more, at an internal error."""
    render, before = payload.render, count_given_up(reason)

    def render_fails_once(record: TurnRecord, **_: bool) -> bytes:
        monkeypatch.setattr(payload, "render", render)
        raise KeyError(record.turn)

    first_url = receiver.url
    if reason == "gone":
        receiver.answers = [answer_with(410)]
    elif reason == "expired":
        receiver.answers = [answer_with(500)]
    elif reason == "refused":
        first_url = f"http://127.0.0.2:{receiver.port}/"
    else:
        monkeypatch.setattr(payload, "render", render_fails_once)
    keys = [await own.write(first_url, session="one"), await own.write(receiver.url, session="one")]
    async with own.persistence(webhook_give_up_s=0.001 if reason == "expired" else 60.0):
        await own.wait_until_drained()
    assert receiver.turns == turns(keys if reason in ("gone", "expired") else keys[1:])
    assert count_given_up(reason) == before + 1


@pytest.mark.rule("R45")
async def test_webhooks_of_a_session_are_in_order_and_delay_no_other_session(
    own: WebhookSystem, receiver: Receiver
) -> None:
    """The second one waits while the first one is retried."""
    may_succeed = asyncio.Event()

    async def fail_first(webhook: ReceivedWebhook, _: Request) -> Response:
        return Response(status=204 if may_succeed.is_set() or webhook.turn != first.turn else 500)

    receiver.answer = fail_first
    async with own.persistence():
        first, second = await own.write_session(receiver.url, 2)
        others = [await own.write(receiver.url) for _ in range(3)]
        # A session of the same name belongs to another tenant.
        others.append(await own.write(receiver.url, session="one", tenant=THEIRS))
        await until(lambda: set(turns(others)) <= set(receiver.turns) and receiver.turns.count(first.turn) > 3)
        assert second.turn not in receiver.turns
        may_succeed.set()
        await own.wait_until_drained()
    of_session = [turn for turn in receiver.turns if turn in (first.turn, second.turn)]
    assert of_session == [first.turn] * (len(of_session) - 1) + [second.turn]


@pytest.mark.rule("R45")
async def test_tenants_whose_receivers_are_down_do_not_delay_the_webhooks_of_others(
    own: WebhookSystem, receiver: Receiver
) -> None:
    """Beyond its share, a tenant's webhooks wait in the log, also beyond that of all tenants. None is given up.

    A log line and a metric say so, once when it begins and once when it ends.
    """
    tenants = [Tenant(f"dead-{number}") for number in range(2)]
    receiver.answer = answer_with(500)
    with capture_logs() as lines:
        async with Receiver() as other, own.persistence(webhook_share=2):
            keys = [await own.write(receiver.url, tenant=tenant) for _ in range(6) for tenant in tenants]
            await until(lambda: count_waiting("beyond_share") == 8)
            assert set(receiver.turns) == set(turns(keys[:4]))
            theirs = await own.write(other.url, tenant=THEIRS)
            await until(lambda: other.received)
            assert other.turns == [theirs.turn]
            assert count_waiting("waiting") == 12
            receiver.answer = answer_with(204)
            await own.wait_until_drained()
            await until(
                lambda: has_events(lines, "the webhooks of a tenant use no more than their share again", tenants)
            )
            await until(lambda: count_waiting("beyond_share") == 0)
    assert has_events(lines, "webhooks of a tenant wait in the log", tenants)
    assert not [line for line in lines if line["event"] == "webhook given up"]
    delivered = list(dict.fromkeys(receiver.turns))
    for number in range(2):
        assert [turn for turn in delivered if turn in turns(keys[number::2])][2:] == turns(keys[number::2])[2:]


def has_events(lines: list[EventDict], event: str, tenants: list[Tenant]) -> bool:
    """Returns whether this was logged once for each of the tenants."""
    return sorted(line["tenant"] for line in lines if line["event"] == event) == tenants


def count_waiting(gauge: str) -> float:
    return REGISTRY.get_sample_value(f"tailrace_persistence_webhooks_{gauge}") or 0.0


@pytest.mark.rule("R45")
async def test_many_tenants_whose_receivers_are_down_have_one_slot_each(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each user of a login may be a tenant. Another tenant gets a slot at once, also when all are in use."""
    monkeypatch.setattr(sender, "WAITING_MAX", 4)
    receiver.answer = answer_with(500)
    with capture_logs() as lines:
        async with Receiver() as other, own.persistence():
            keys = [await own.write(receiver.url, tenant=Tenant(f"dead-{number}")) for number in range(6) for _ in "ab"]
            await until(lambda: count_waiting("beyond_share") == 4)
            assert len(set(receiver.turns)) == 8
            await own.write(other.url, tenant=THEIRS)
            await until(lambda: other.received)
            receiver.answer = answer_with(204)
            await own.wait_until_drained()
            await until(lambda: "the sender of webhooks is not full any more" in [line["event"] for line in lines])
    assert [line["event"] for line in lines if "the sender" in line["event"]] == [
        "the sender of webhooks is full: one webhook of each tenant",
        "the sender of webhooks is not full any more",
    ]
    assert set(receiver.turns) == set(turns(keys))


@pytest.mark.rule("R45")
async def test_a_free_slot_is_for_the_oldest_webhook_beyond_the_share(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while the log does not answer, and a later webhook of the session arrives."""
    monkeypatch.setattr(sender, "LOG_WAIT_S", 0.05)
    resume = Deliveries.resume
    may_read = asyncio.Event()

    async def fail_at_first(deliveries: Deliveries, seq: Seq) -> Delivery | None:
        if not may_read.is_set():
            raise LogUnavailable("the log does not answer")
        return await resume(deliveries, seq)

    monkeypatch.setattr(Deliveries, "resume", fail_at_first)
    receiver.answer = answer_with(500)
    async with own.persistence(webhook_share=1):
        keys = await own.write_session(receiver.url, 2)
        await until(lambda: count_waiting("beyond_share") == 1)
        receiver.answer = answer_with(204)
        await until(lambda: has_backlog(own, 0, 1))
        keys += await own.write_session(receiver.url, 1)
        await until(lambda: count_waiting("beyond_share") == 2)
        may_read.set()
        await own.wait_until_drained()
    assert list(dict.fromkeys(receiver.turns)) == turns(keys)


@pytest.mark.rule("R45")
@pytest.mark.parametrize("signal", [SIGTERM, SIGKILL])
async def test_webhooks_beyond_the_share_keep_the_order_of_their_session_after_a_stop(
    own: WebhookSystem, receiver: Receiver, signal: Signals
) -> None:
    """Also before one that is written while no process runs, and one that is written afterwards. None is lost."""
    await own.shorten_lease()
    receiver.answer = answer_with(500)
    async with Receiver() as other, own.process(TAILRACE_WEBHOOK_SHARE=2) as process:
        blocked = [await own.write(receiver.url) for _ in range(2)]
        keys = await own.write_session(receiver.url, 4)
        await until(lambda: len(process.find_lines("webhooks of a tenant wait in the log")) == 1)
        await until(lambda: set(receiver.turns) == set(turns(blocked)))
        await process.stop(signal)
        keys += await own.write_session(receiver.url, 1)
        await process.start()
        keys += await own.write_session(receiver.url, 1)
        await own.write(other.url, tenant=THEIRS)
        await until(lambda: other.received, 20)
        assert set(receiver.turns) == set(turns(blocked))
        receiver.answer = answer_with(204)
        await own.wait_until_drained()
    assert [turn for turn in receiver.turns if turn not in turns(blocked)] == turns(keys)


@pytest.mark.rule("R45")
@pytest.mark.parametrize("share", [1, 200])
async def test_a_webhook_that_a_killed_process_has_left_in_the_log_for_longer_is_sent_before_later_ones(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    """Of a tenant that has a mark, also if its share is larger now; other tenants do not wait for it."""
    await own.shorten_lease()
    monkeypatch.setattr(sender, "EXTENDED_S_MAX", 4.0)
    await Marks(own.connection).put(OURS, 10.0)
    keys = await own.write_session(receiver.url, 4)
    first, second, third, _ = await until(lambda: own.ends.next(4))
    # The process is killed when the third one has just arrived there.
    await second.extend(4.0)
    await third.renew()
    async with Receiver() as other, own.persistence(webhook_share=share):
        await own.write(other.url, tenant=THEIRS)
        await until(lambda: other.received)
        assert not receiver.received
        keys += await own.write_session(receiver.url, 1)
        await own.wait_until_drained()
    assert first.key == keys[0]
    assert receiver.turns == turns(keys)


@pytest.mark.rule("R45")
async def test_a_kill_while_an_overflow_drains_keeps_the_order_of_each_session(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver works again, so that few webhooks of the share are left."""
    await own.shorten_lease()
    receiver.answer = answer_with(500)
    async with own.process(TAILRACE_WEBHOOK_SHARE=20, TAILRACE_WEBHOOK_WAIT_S=0.5) as process:
        keys = [await own.write(receiver.url, session=f"session-{number}") for number in range(220)]
        await until(lambda: Marks(own.connection).exists(OURS))
        # Leases are extended by 4 seconds from the mark on.
        number = (await own.ends.backlog()).number
        await until(lambda: has_delivered(own, number + 200))
        receiver.answer = answer_after(0.01)
        await until(lambda: keys[60].turn in receiver.turns)
        await process.stop(SIGKILL)
    monkeypatch.setattr(sender, "EXTENDED_S_MAX", 5.0)
    async with own.persistence():
        later = {
            key.turn: await own.write(receiver.url, session=f"session-{number}")
            for number, key in enumerate(keys)
            if key.turn not in receiver.turns and number % 5 == 0
        }
        assert later
        await own.wait_until_drained()
    for turn, next_ in later.items():
        assert receiver.turns.index(turn) < receiver.turns.index(next_.turn)


async def has_delivered(own: WebhookSystem, number: int) -> bool:
    return (await own.ends.backlog()).number >= number


@pytest.mark.rule("R45")
async def test_a_webhook_that_is_lost_on_its_way_is_not_overtaken_while_deleted_ones_wait_in_the_log(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-server counts no leases of deleted turns, and the gauge does not either."""
    await own.shorten_lease()
    receiver.answer = answer_with(500)
    lost = set[str]()

    class LosesOne(Deliveries):
        async def next(self, most: int = 1, mark: Mark | None = None) -> list[Delivery]:
            found = await super().next(most, mark)
            new = [one.key.turn for one in found if one.key.tenant == THEIRS and not lost][:1]
            lost.update(new)
            return [one for one in found if one.key.turn not in new]

    monkeypatch.setattr(persistence, "Deliveries", LosesOne)
    async with Receiver() as other, own.persistence(webhook_share=1):
        keys = [await own.write(receiver.url) for _ in range(6)]
        await until(lambda: count_waiting("beyond_share") == 5)
        for key in keys[2:]:
            await own.delete(key)
        await until(lambda: count_waiting("beyond_share") == 1)
        theirs = [await own.write(other.url, tenant=THEIRS, session="one")]
        await until(lambda: lost)
        theirs.append(await own.write(other.url, tenant=THEIRS, session="one"))
        await until(lambda: len(other.received) == 2)
    assert other.turns == turns(theirs)


@pytest.mark.rule("R45")
async def test_a_webhook_beyond_the_share_is_delivered_again_ever_less_often(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number of deliveries is no number of attempts: its first attempt is delayed by nothing else."""
    await own.shorten_lease()
    monkeypatch.setattr(sender, "EXTENSIONS_PER_S", 1)
    receiver.answer = answer_with(500)
    async with own.persistence(webhook_share=1, webhook_wait_s=0.2):
        keys = [await own.write(receiver.url) for _ in range(21)]
        await until(lambda: count_waiting("beyond_share") == 20)
        before = (await own.ends.backlog()).number
        await asyncio.sleep(5)
        # With leases of 0.6 s, it would be 160.
        assert (await own.ends.backlog()).number - before <= 40
        receiver.answer = answer_with(204)
        failed = len(receiver.turns)
        await own.wait_until_drained()
    assert set(receiver.turns[:failed]) == {keys[0].turn}
    assert receiver.turns[failed:] == turns(keys)


@pytest.mark.rule("R45")
async def test_turns_that_leave_the_log_while_they_wait_in_it_are_given_up_unless_they_were_deleted(
    own: WebhookSystem, receiver: Receiver
) -> None:
    receiver.answer = answer_with(500)
    with capture_logs() as lines:
        async with own.persistence(webhook_share=1):
            first, expired, kept, deleted, last = [await own.write(receiver.url) for _ in range(5)]
            await until(lambda: count_waiting("beyond_share") == 4)
            await own.delete(deleted)
            upto = (await own.log.read_turn(ScopedKey.whole(expired))).chain.last
            receiver.answer = answer_with(204)
            await own.connection.jetstream.purge_stream(STREAM, seq=upto + 1)
            await own.wait_until_drained()
    assert list(dict.fromkeys(receiver.turns)) == turns([first, kept, last])
    given_up = [line["seq"] for line in lines if line["event"] == "webhook given up" and "seq" in line]
    assert given_up == [upto]


async def test_a_long_backlog_is_delivered_to_a_receiver_that_works(own: WebhookSystem, receiver: Receiver) -> None:
    """For example after persistence was away: it reads turns from the log faster than the receiver accepts them."""
    receiver.answer = answer_after(0.1)
    keys = [await own.write(receiver.url) for _ in range(100)]
    async with own.persistence(webhook_share=10):
        async with asyncio.timeout(stream_configs.WEBHOOKS_ACK_WAIT_S):
            await own.wait_until_drained()
    assert sorted(receiver.turns) == sorted(turns(keys))


async def test_a_sender_with_a_long_backlog_stops_at_once(own: WebhookSystem, receiver: Receiver) -> None:
    """It returns to the log what it has not begun. In all, the webhooks of this test take a minute."""
    receiver.answer = answer_after(0.6)
    keys = [await own.write(receiver.url) for _ in range(100)]
    async with asyncio.timeout(10):
        async with own.persistence(webhook_share=1):
            await until(lambda: receiver.received)
    receiver.answer = answer_with(204)
    async with own.persistence():
        await own.wait_until_drained()
    assert set(receiver.turns) == set(turns(keys))


async def test_a_slow_receiver_delays_only_its_own_tenant(own: WebhookSystem, receiver: Receiver) -> None:
    """The number of connections is limited per tenant."""
    receiver.answer = hang
    async with Receiver() as other, own.persistence(webhook_timeout_s=60.0):
        for _ in range(sender.CONNECTIONS + 3):
            await own.write(receiver.url)
        await until(lambda: len(receiver.received) == sender.CONNECTIONS)
        await own.write(other.url, tenant=THEIRS)
        await until(lambda: other.received)
        assert len(receiver.received) == sender.CONNECTIONS


@pytest.mark.rule("R45")
async def test_a_deleted_turn_is_not_posted(own: WebhookSystem, receiver: Receiver) -> None:
    """Neither at the first attempt nor at a retry; the session's other turns are.

    A nats-server that lags behind may still have the turn after its deletion.
    """
    receiver.answer = answer_with(500)
    before = count_given_up("expired")
    deleted, readable = [await own.write(receiver.url) for _ in range(2)]
    await own.delete(deleted)
    await Tombstones(own.connection).put([readable])
    async with own.persistence():
        (first,) = await own.write_session(receiver.url, 1)
        await until(lambda: receiver.turns.count(first.turn) > 1)
        (second,) = await own.write_session(receiver.url, 1)
        await own.delete(first)
        await until(lambda: second.turn in receiver.turns)
        receiver.answer = answer_with(204)
        await own.wait_until_drained()
    assert not {deleted.turn, readable.turn} & set(receiver.turns)
    assert count_given_up("expired") == before


@pytest.mark.rule("R35")
async def test_a_running_turn_that_is_deleted_is_not_posted(
    own: WebhookSystem, receiver: Receiver, new_gateway: NewGateway
) -> None:
    """The deletion cancels it first, which is an end like any other. A turn that is only cancelled is posted."""
    async with own.persistence():
        gateway = await new_gateway(own.server.url, webhooks=True, webhook_private_hosts="127.0.0.1")
        session, cancelled, alone = [
            (await gateway.client.post("/v1/turns", json={"message": "Why?", "webhook": receiver.url})).json()
            for _ in range(3)
        ]
        paths = (f"/v1/sessions/{session['session']}", alone["links"]["self"])
        for answer in await asyncio.gather(*map(gateway.client.delete, paths)):
            assert (answer.status_code, answer.json()["turns"]) == (200, 1)
        await gateway.client.post(cancelled["links"]["cancel"])
        await own.wait_until_drained()
    assert receiver.turns == [cancelled["turn"]]


@pytest.mark.rule("R35")
async def test_the_turns_of_a_running_batch_that_is_deleted_are_not_posted(
    own: WebhookSystem, receiver: Receiver
) -> None:
    """The batch is their parent. The generator cancels them when the batch is cancelled."""
    batch, other = (TurnKey(OURS, TurnId(new_id())) for _ in range(2))
    await Tombstones(own.connection).mark_deletion(batch)
    # The last one is no turn of the batch, but continues it, at another time: nothing deletes it.
    later = TurnId("019a0000-0000-7000-8000-000000000000")
    ids = [child_id(batch.turn, 0), child_id(batch.turn, 1), child_id(other.turn, 0), later]
    children = [Writer(own.log, TurnKey(OURS, turn)) for turn in ids]
    for child, parent in zip(children, (batch, batch, other, batch), strict=True):
        await child.store_request(webhook=receiver.url, parent=parent.turn)
        await child.begin("Light")
    completed, *cancelled = children
    await completed.end()
    for child in cancelled:
        await child.end("cancelled")
    async with own.persistence():
        await own.wait_until_drained()
    assert sorted(receiver.turns) == sorted(turns([completed.key, cancelled[1].key, cancelled[2].key]))


@pytest.mark.rule("R45")
async def test_a_webhook_whose_turn_leaves_the_log_is_given_up_unless_it_is_being_deleted(
    own: WebhookSystem, receiver: Receiver
) -> None:
    """A gateway removes the entries of a deleted turn, and persistence sets its tombstone seconds later.

    With the default settings the log keeps a turn for as long as its webhook is retried.
    """
    receiver.answer = answer_with(500)
    before = count_given_up("expired")
    async with own.persistence(webhook_wait_s=0.3):
        deleted, expired = [await own.write(receiver.url) for _ in range(2)]
        await until(lambda: len(set(receiver.turns)) == 2)
        with capture_logs() as logs:
            for key in (deleted, expired):
                await own.log.purge(key)

            def is_missed() -> bool:
                return any(line["turn"] == deleted.turn for line in logs if "does not keep" in line.get("why", ""))

            await until(is_missed)
            await Tombstones(own.connection).put([deleted])
            await own.wait_until_drained()
    assert count_given_up("expired") == before + 1
    (given_up,) = [line for line in logs if line["event"] == "webhook given up"]
    assert (given_up["turn"], given_up["why"]) == (expired.turn, "the log does not keep its turn any more")


@pytest.mark.rule("R45")
async def test_the_end_of_a_fork_is_not_posted(own: WebhookSystem, receiver: Receiver) -> None:
    """PROTOCOL R11: it is skipped, and the turn's valid end is posted once."""
    writer = new_writer(own.log)
    async with own.persistence():
        await writer.store_request(webhook=receiver.url)
        await writer.begin("Light")
        fork = msgspec.structs.replace(
            build_end(await own.log.read_turn(ScopedKey.whole(writer.key)), "cancelled"), prev=Seq(1)
        )
        await own.connection.jetstream.publish(subjects.entry(writer.key, "end"), entries.encode(fork))
        await own.wait_until_drained()
        assert receiver.received == []
        await writer.end()
        await own.wait_until_drained()
    assert [(webhook.turn, webhook.payload["type"]) for webhook in receiver.received] == [
        (writer.key.turn, "turn.completed")
    ]


# Leases, kills and stops


@pytest.mark.parametrize("share", [1, 3])
async def test_a_stopped_process_returns_its_entries_at_once_in_order(
    own: WebhookSystem, receiver: Receiver, share: int
) -> None:
    """The next process does not wait for leases to expire."""
    receiver.answer = hang
    async with own.persistence(webhook_share=share):
        keys = await own.write_session(receiver.url, 3)
        await until(lambda: receiver.received)
        await until(lambda: has_backlog(own, 0, 3))
    returned: list[Delivery] = []
    async with asyncio.timeout(stream_configs.WEBHOOKS_ACK_WAIT_S / 2):
        while len(returned) < len(keys):
            returned += await own.ends.next(len(keys))
    assert [delivery.key for delivery in returned] == keys


async def test_the_leases_of_waiting_webhooks_are_renewed(own: WebhookSystem, receiver: Receiver) -> None:
    await own.shorten_lease()
    receiver.answer = hang
    async with own.persistence():
        await own.write_session(receiver.url, 2)
        await until(lambda: receiver.received)
        other = await Deliveries.open(own.connection, WEBHOOKS)
        # Each call waits for half a second: two and a half leases.
        assert [await other.next(2) for _ in range(3)] == [[], [], []]


@pytest.mark.rule("R45")
async def test_killed_and_stopped_processes_deliver_each_session_in_order(
    own: WebhookSystem, receiver: Receiver
) -> None:
    """Each time one webhook is being delivered, others of its session wait, and more are written while it is down.

    A webhook that the receiver has acknowledged is not sent again; the interrupted one is.
    """

    def is_last(key: TurnKey) -> bool:
        return receiver.turns[-1:] == [key.turn]

    await own.shorten_lease()
    receiver.answers, receiver.answer = [answer_with(204)], hang
    keys = await own.write_session(receiver.url, 3)
    async with own.process() as process:
        for number, signal in enumerate((SIGKILL, SIGTERM), 1):
            await until(functools.partial(is_last, keys[number]), 20)
            await process.stop(signal)
            keys += await own.write_session(receiver.url, 1)
            receiver.answers = [answer_with(204)]
            await process.start()
        await until(functools.partial(is_last, keys[3]), 20)
        await process.stop(SIGKILL)
        receiver.answer = answer_with(204)
        await process.start()
        await own.wait_until_drained()
    interrupted = keys[1:4]
    sent = [key.turn for key in keys for _ in range(2 if key in interrupted else 1)]
    assert receiver.turns == sent


@pytest.mark.rule("R45")
async def test_an_end_that_is_lost_on_its_way_is_posted_before_later_ones(
    own: WebhookSystem, receiver: Receiver
) -> None:
    """The connection to NATS is cut right after the server has delivered it. Its lease is not known here."""
    await own.shorten_lease()
    async with (
        LossyLink(own.server.url, share=1, what=f"$JS.ACK.TURNS.{WEBHOOKS}.".encode()) as link,
        Persistence(link.url, own.folder / "tailrace.db", **SETTINGS),
    ):
        keys = await own.write_session(receiver.url, 2)
        await until(lambda: link.lost == 2)
        link.share = 0
        keys += await own.write_session(receiver.url, 1)
        await own.wait_until_drained()
    assert receiver.turns == turns(keys)


@pytest.mark.rule("R45")
async def test_of_two_processes_with_one_database_only_one_sends(
    own: WebhookSystem, receiver: Receiver, postgresql: PostgreSQLServer
) -> None:
    """When the sender loses its lock, the next holder sends the other webhooks, in order."""
    url = await postgresql.new_database()
    await own.shorten_lease()
    receiver.answer = answer_with(500)

    async def lock_holders() -> list[int]:
        async with postgresql.connect(url) as admin:
            rows = await admin.fetch(
                "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted AND "
                "((classid::bigint << 32) | objid::bigint) = hashtextextended('webhooks', 0)"
            )
        return [row["pid"] for row in rows]

    async def is_handed_over() -> bool:
        return (left := await lock_holders()) != [] and holder not in left

    settings = {"nats_url": own.server.url, "database": url, **SETTINGS}
    async with Persistence(**settings), Persistence(**settings):  # type: ignore[arg-type]
        keys = []
        for number in range(6):
            keys += await own.write_session(receiver.url, 1)
            await until(lambda: len(receiver.received) > number)  # noqa: B023
        assert set(receiver.turns) == {keys[0].turn}
        await until(lock_holders)
        (holder,) = await lock_holders()
        async with postgresql.connect(url) as admin:
            await admin.execute("SELECT pg_terminate_backend($1)", holder)
        await until(is_handed_over)
        receiver.answer = answer_with(204)
        await own.wait_until_drained()
    of_session = receiver.turns
    assert list(dict.fromkeys(of_session)) == turns(keys)
    assert of_session[-5:] == turns(keys[1:])


async def test_turns_that_cannot_be_read_are_posted_later_in_order(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log delivers an end and then does not answer. What is returned to the queue meanwhile does not arrive."""
    monkeypatch.setattr(sender, "LOG_WAIT_S", 0.01)
    read = TurnLog.read_entries
    failed: list[TurnKey] = []

    async def fail_at_times(
        log: TurnLog, key: ScopedKey, after: Seq = BEFORE_FIRST, limit: int = 512
    ) -> list[StoredEntry]:
        if len(failed) < 3 and key.plain == keys[len(failed)]:
            failed.append(key.plain)
            keys.extend(await own.write_session(receiver.url, 1))
            raise LogUnavailable("the log does not answer")
        return await read(log, key, after, limit)

    async def lose(_: Delivery, delay_s: float = 0.0) -> None:
        """Does not return it."""

    keys = await own.write_session(receiver.url, 4)
    monkeypatch.setattr(TurnLog, "read_entries", fail_at_times)
    monkeypatch.setattr(Delivery, "release", lose)
    async with own.persistence():
        await own.wait_until_drained()
    assert failed == keys[:3]
    assert receiver.turns == turns(keys)


async def test_a_webhook_whose_lease_expired_is_not_posted_twice_at_once(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its renewals are lost: the same end is delivered again during the POST and during the acknowledgement."""
    await own.shorten_lease()
    ack, take = Delivery.ack, Deliveries.next
    taken: list[Delivery] = []

    async def answer_late(_: ReceivedWebhook, __: Request) -> Response:
        await until(lambda: len(taken) >= 3)
        return Response(status=204)

    async def count(deliveries: Deliveries, most: int = 1) -> list[Delivery]:
        taken.extend(found := await take(deliveries, most))
        return found

    async def ack_late(delivery: Delivery) -> None:
        await until(lambda: len(taken) >= 5)
        await ack(delivery)

    async def renew(_: Delivery) -> None:
        """Is lost on its way."""

    monkeypatch.setattr(Deliveries, "next", count)
    monkeypatch.setattr(Delivery, "renew", renew)
    monkeypatch.setattr(Delivery, "ack", ack_late)
    receiver.answer = answer_late
    async with own.persistence():
        key = await own.write(receiver.url)
        await own.wait_until_drained()
        await until(lambda: REGISTRY.get_sample_value("tailrace_persistence_webhooks_waiting") == 0)
    assert receiver.turns == [key.turn]


@pytest.mark.rule("R45")
async def test_an_end_that_is_delivered_twice_while_the_sender_starts_is_posted_once(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its renewals are lost. Meanwhile the sender waits for an end that is leased to the previous process."""
    await own.shorten_lease()
    keys = [await own.write(webhook, session="one") for webhook in (receiver.url, None, receiver.url)]
    leased = await own.ends.next(len(keys))
    renew, take = Delivery.renew, Deliveries.next
    taken: list[Seq] = []

    async def count(deliveries: Deliveries, most: int = 1) -> list[Delivery]:
        found = await take(deliveries, most)
        taken.extend(delivery.seq for delivery in found)
        return found

    async def lose(_: Delivery) -> None:
        """Does not renew."""

    async def is_delivered_twice() -> bool:
        await renew(leased[-1])
        return all(taken.count(delivery.seq) >= 2 for delivery in leased[:-1])

    monkeypatch.setattr(Deliveries, "next", count)
    monkeypatch.setattr(Delivery, "renew", lose)
    async with own.persistence():
        await until(is_delivered_twice)
        await own.wait_until_drained()
    assert receiver.turns == turns([keys[0], keys[2]])


async def test_urls_of_receivers_are_not_logged(own: WebhookSystem, receiver: Receiver) -> None:
    canary, text = "canary-of-a-url", "canary of a text"
    receiver.answers = [answer_with(500), answer_with(204), answer_with(410)]
    urls = [f"{receiver.url}?token={canary}"] * 2 + [f"http://127.0.0.2/{canary}", f"http://127.0.0.1:1/{canary}"]
    async with own.process(TAILRACE_WEBHOOK_GIVE_UP_S=0.5) as process:
        for url in urls:
            await own.write(url, text=text)
        await own.wait_until_drained()
    printed = process.printed.read_text()
    assert [len(process.find_lines(event)) for event in ("webhook delivered", "webhook given up")] == [1, 3]
    assert "canary" not in printed
    assert KEY not in printed


# POST /v1/turns


async def test_a_turn_is_submitted_with_a_webhook(
    nats_server: NatsServer, new_gateway: NewGateway, log: TurnLog, tenant: Tenant
) -> None:
    """It is in the request and not in any record."""
    gateway = await new_gateway(nats_server.url, webhooks=True, webhook_private_hosts="hooks.internal")
    for url in ("https://example.com/hook?secret=s", "http://hooks.internal:9000/hook"):
        answer = await gateway.client.post("/v1/turns", json={"message": "Why?", "webhook": url})
        assert answer.status_code == 202, answer.text
        key = TurnKey(tenant, TurnId(answer.json()["turn"]))
        request = (await log.read_turn(ScopedKey.whole(key))).request
        assert request is not None
        assert request.webhook == url
        assert url not in (await gateway.client.get(f"/v1/turns/{key.turn}")).text


@pytest.mark.rule("S10")
async def test_an_invalid_webhook_url_is_refused(nats_server: NatsServer, new_gateway: NewGateway) -> None:
    """Status 400 with the name of the field; if no webhooks are sent, with the name of the setting."""
    urls = [*NO_URL, *NO_PORT, *LOW_PORT, *NOT_HTTPS, *NOT_PUBLIC]
    for given, word, refused in (({"webhooks": True}, "`webhook`", urls), ({}, "TAILRACE_WEBHOOKS", urls[:1])):
        gateway = await new_gateway(nats_server.url, **given)
        for url in refused:
            answer = await gateway.client.post("/v1/turns", json={"message": "Why?", "webhook": url})
            error = answer.json().get("error")
            assert (answer.status_code, error and error["code"]) == (400, "request_invalid"), url
            assert word in error["message"], url


async def test_a_tenant_without_waiting_webhooks_needs_no_memory(own: WebhookSystem, receiver: Receiver) -> None:
    """Each user of a login may be a tenant."""

    async def semaphores_after(tenants: int) -> int:
        for number in range(tenants):
            await own.write(receiver.url, tenant=Tenant(f"tenant-{number}"))
        await own.wait_until_drained()
        gc.collect()
        return sum(isinstance(one, asyncio.Semaphore) for one in gc.get_objects())

    async with own.persistence():
        first = await semaphores_after(1)
        assert await semaphores_after(30) <= first + 5


@pytest.mark.parametrize("answer", [answer_with(500), hang])
async def test_webhooks_keep_no_turn_in_memory(own: WebhookSystem, receiver: Receiver, answer: Answer) -> None:
    """Thousands wait for hours while a receiver is down, or for slow responses, each for a whole conversation."""
    receiver.answer = answer
    count = 20 if answer is not hang else sender.CONNECTIONS

    def turns_in_memory() -> int:
        gc.collect()
        return sum(isinstance(one, Turn) for one in gc.get_objects())

    async with own.persistence(webhook_wait_s=60, webhook_timeout_s=60.0):
        before = turns_in_memory()
        for _ in range(count):
            await own.write(receiver.url)
        await until(lambda: len(receiver.turns) == count)
        await until(lambda: turns_in_memory() <= before + 3)


async def test_large_bodies_wait_for_one_another_and_small_ones_do_not_wait_for_them(
    own: WebhookSystem, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bodies that are being sent to slow receivers are in memory."""
    monkeypatch.setattr(sender, "LARGE_BODIES_BYTES_MAX", 200_000)
    may_answer = asyncio.Event()

    async def answer_later(_: ReceivedWebhook, __: Request) -> Response:
        await may_answer.wait()
        return Response(status=204)

    receiver.answer = answer_later
    text = "a" * 70_000
    async with Receiver() as other, own.persistence(webhook_timeout_s=60.0):
        # Each has the text twice.
        large = [await own.write(receiver.url, tenant=Tenant(f"t-{number}"), text=text) for number in range(3)]
        await until(lambda: receiver.received)
        small = await own.write(other.url, tenant=Tenant("t-1"))
        await until(lambda: other.received)
        assert other.turns == [small.turn]
        assert len(receiver.turns) == 1
        may_answer.set()
        await own.wait_until_drained()
    assert sorted(receiver.turns) == sorted(turns(large))
