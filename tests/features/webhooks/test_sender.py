"""The sender of webhooks with a log, tombstones and deliveries in memory: order, repetitions, deletion, giving up."""

import asyncio
from collections.abc import Mapping
from typing import cast

import pytest

from tailrace.features.webhooks.http import Answer, WebhookClient
from tailrace.features.webhooks.marks import Marks
from tailrace.features.webhooks.sender import WebhookSender
from tailrace.proto.chain import START
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import End
from tailrace.proto.errors import WebhookFailed
from tailrace.proto.ids import SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.ownership import ScopedKey
from tailrace.testing import MemoryDeliveries, MemoryLog, MemoryTombstones
from tests.harness.turn_builder import request
from tests.harness.until import until
from tests.harness.virtual_time import run

URL = "https://hooks.example/turns"
WAIT_S, GIVE_UP_S = 5.0, 3600.0


class Receivers:
    """The receivers. The next posts of each turn are answered with its statuses in `answers`, later ones with 200."""

    def __init__(self, **answers: list[int]) -> None:
        self.posts: list[tuple[str, bytes]] = []
        self._answers = answers

    async def post(self, _: str, headers: Mapping[str, str], body: bytes) -> Answer:
        turn = headers["webhook-id"]
        self.posts.append((turn, body))
        status = self._answers[turn].pop(0) if self._answers.get(turn) else 200
        if not status:
            raise WebhookFailed("no answer")
        return Answer(status, None)

    @property
    def turns(self) -> list[str]:
        return [turn for turn, _ in self.posts]


class Ended:
    """Ended turns, each given as its name and its session, whose ends are delivered in this order."""

    def __init__(self, *turns: tuple[str, str], deleted: str = "") -> None:
        self.log, self.deliveries, self.tombstones = MemoryLog(), MemoryDeliveries(), MemoryTombstones()
        self._turns = turns
        self._deleted = deleted

    async def _store(self, name: str, session: str) -> None:
        key = TurnKey(Tenant("t"), TurnId(name))
        self.log.turn_of(key).watches.append(self.deliveries.watch(key, End))
        chain = await self.log.append(key, START, request(session=SessionId(session), webhook=URL))
        await self.log.append(key, chain, build_end(await self.log.read_turn(ScopedKey.whole(key)), "cancelled"))
        if name == self._deleted:
            await self.tombstones.put([key])

    async def send(self, receivers: Receivers) -> None:
        """Sends until every end is acknowledged."""
        for turn in self._turns:
            await self._store(*turn)
        sender = WebhookSender(
            self.log,
            self.tombstones,
            self.deliveries,
            cast("Marks", None),
            cast("WebhookClient", receivers),
            keys=[b"k" * 32],
            urls={},
            first_wait_s=WAIT_S,
            give_up_s=GIVE_UP_S,
            share=100,
        )
        stop = asyncio.Event()
        sending = asyncio.create_task(sender.run(stop))
        await until(lambda: self.deliveries.is_done, 100)
        stop.set()
        await sending


@pytest.mark.rule("R45")
def test_a_failed_webhook_is_repeated_with_its_id_and_body_before_the_next_one_of_its_session() -> None:
    """It delays no other session."""
    receivers = Receivers(first=[500, 0])
    run(Ended(("first", "a"), ("second", "a"), ("third", "b")).send(receivers))
    assert receivers.turns == ["first", "third", "first", "first", "second"]
    assert len({body for turn, body in receivers.posts if turn == "first"}) == 1


@pytest.mark.rule("R45")
def test_a_webhook_of_a_deleted_turn_is_not_sent_and_a_refused_one_is_not_repeated() -> None:
    receivers = Receivers(gone=[410])
    run(Ended(("deleted", "a"), ("gone", "a"), ("next", "a"), deleted="deleted").send(receivers))
    assert receivers.turns == ["gone", "next"]
