"""SimulatedConsumer: a durable pull consumer whose leases run out, or are lost while a leader is away (R18)."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from tailrace.proto.entries import StoredEntry
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import Delivery
from tailrace.proto.nats.leases import Mark
from tailrace.proto.nats.stream_configs import GENERATOR_ACK_WAIT_S as ACK_WAIT_S
from tailrace.testing import MemoryDeliveries, MemoryDelivery
from tests.schedules.process import Process
from tests.schedules.server import SimulatedServer

DELIVERY_S = 0.001


class Message:
    """One entry that the consumer delivers until it is acknowledged."""

    def __init__(self, key: TurnKey, stored: StoredEntry) -> None:
        self.key = key
        self.stored = stored
        self.times = 0
        self.lease_until_s = 0.0
        self.is_done = False
        self.is_waiting = False
        """Whether it waits for a process that asks for it."""


class SimulatedConsumer:
    """Delivers each entry that `is_wanted` to one of the processes that ask for it, until one acknowledges it.

    It delivers entries of the turn `key`, and of those that `watch` adds.
    """

    def __init__(
        self,
        server: SimulatedServer,
        key: TurnKey,
        is_wanted: Callable[[StoredEntry], bool],
        on_done: Callable[[str], Any],
    ) -> None:
        self.world = server.world
        self.messages: list[Message] = []
        self._is_wanted = is_wanted
        self._on_done = on_done
        self._pulls: list[tuple[Process, asyncio.Future[list[Message]]]] = []
        self.watch(server, key)

    def watch(self, server: SimulatedServer, key: TurnKey) -> None:
        """Delivers the entries of the turn `key`, whose log is on `server`."""
        server.watches.append(partial(self._queue, key))

    @property
    def is_done(self) -> bool:
        return all(message.is_done for message in self.messages)

    def _queue(self, key: TurnKey, stored: StoredEntry) -> None:
        if self._is_wanted(stored):
            message = Message(key, stored)
            self.messages.append(message)
            self.world.call_after(DELIVERY_S, self._offer, message)

    def lose_leases(self) -> None:
        """Delivers all messages again, as after a time without a leader in which renewals were lost."""
        for message in self.messages:
            self._offer(message)

    def offer_after(self, wait_s: float, message: Message) -> None:
        self.world.call_after(wait_s, self._offer, message)

    def _offer(self, message: Message) -> None:
        if not message.is_done:
            message.is_waiting = True
            self._deliver()

    def _deliver(self) -> None:
        """Gives the waiting messages to one of the processes that ask."""
        self._pulls = [(process, pull) for process, pull in self._pulls if not pull.done()]
        awake = [(process, pull) for process, pull in self._pulls if not process.is_frozen]
        waiting = [message for message in self.messages if message.is_waiting]
        if waiting and awake:
            process, pull = awake[self.world.below(len(awake))]
            self._lease(process, waiting)
            pull.set_result(waiting)
        elif waiting and self._pulls:
            # All that ask are frozen: one of them is served when it is thawed.
            thawed_s = min(process.frozen_until_s for process, _ in self._pulls)
            self.world.call_after(thawed_s - self.world.time(), self._deliver)

    def _lease(self, process: Process, messages: Sequence[Message]) -> None:
        for message in messages:
            message.is_waiting = False
            message.times += 1
            self.world.record("consumer", f"delivers {message.stored.seq} to {process.name}")
            self.renew(message)
            self.world.call_after(ACK_WAIT_S, self._expire, message, message.times)

    def renew(self, message: Message, lease_s: float = ACK_WAIT_S) -> None:
        message.lease_until_s = self.world.time() + lease_s

    def _expire(self, message: Message, times: int) -> None:
        if message.is_done or message.times != times:
            return
        if message.lease_until_s > self.world.time():
            self.world.call_after(message.lease_until_s - self.world.time(), self._expire, message, times)
        else:
            self._offer(message)

    def acknowledge(self, message: Message, process: Process) -> None:
        self.world.record(process.name, f"acknowledges {message.stored.seq}")
        message.is_done, message.is_waiting = True, False
        self._on_done(process.name)

    async def next(self, process: Process) -> list[Message]:
        """Waits until there are messages for `process`."""
        pull = self.world.create_future()
        self._pulls.append((process, pull))
        self._deliver()
        messages: list[Message] = await pull
        return messages


class SimulatedDelivery(MemoryDelivery):
    """The product's Delivery, in one process."""

    def __init__(self, consumer: SimulatedConsumer, message: Message, process: Process, mark: Mark | None) -> None:
        super().__init__(message.key, message.stored, message.times, ACK_WAIT_S, mark)
        self._consumer = consumer
        self._entry = message
        self._process = process

    async def renew(self) -> None:
        if not self._process.is_dead:
            self._consumer.renew(self._entry)

    async def extend(self, lease_s: float) -> None:
        if not self._process.is_dead:
            self._consumer.renew(self._entry, lease_s)

    async def ack(self) -> None:
        if not self._process.is_dead:
            self._consumer.acknowledge(self._entry, self._process)

    async def release(self, delay_s: float = 0.0) -> None:
        if not self._process.is_dead:
            self._consumer.offer_after(delay_s, self._entry)


class SimulatedDeliveries(MemoryDeliveries):
    """The product's Deliveries, in one process."""

    def __init__(self, consumer: SimulatedConsumer, process: Process) -> None:
        super().__init__(ACK_WAIT_S)
        self._consumer = consumer
        self._process = process

    async def next(self, most: int = 1, mark: Mark | None = None) -> list[Delivery]:  # noqa: ARG002
        messages = await self._consumer.next(self._process)
        return [SimulatedDelivery(self._consumer, message, self._process, mark) for message in messages]
