"""Clients who ask, read over connections that are cut, look and cancel, for as long as they are told to. Recorded."""

import asyncio
import random
from collections.abc import Sequence

from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.subjects import TurnKey
from tests.chaos.question import question
from tests.chaos.system import System
from tests.checker.client import Client

# Sockets that die take a moment to be missed; a browser waits about this long.
AWAY_S_MAX = 0.2
CUT_AFTER_S = 2.0
"""How long a reader's connection lives on the average."""
# One of so many turns is cancelled.
CANCELLED_OF = 12
LEFT_AFTER_FRAMES = 8


class Load:
    """`asked` and `ended` are turns; `is_over` ends the asking, and what was asked is read to its end."""

    def __init__(self, system: System, chance: random.Random, at_once: int, faults: Sequence[str]) -> None:
        self.asked = self.ended = 0
        self.is_over = asyncio.Event()
        self._system = system
        self._chance = chance
        self._slots = asyncio.Semaphore(at_once)
        self._faults = faults

    async def run(self) -> None:
        """Returns when `is_over` is set and every turn has ended."""
        async with asyncio.TaskGroup() as group:
            while not self.is_over.is_set():
                await self._slots.acquire()
                group.create_task(self._carry(self.asked))
                self.asked += 1

    async def _carry(self, number: int) -> None:
        chance = random.Random(f"{number} {self._chance.random()}")
        asker = self._system.client(f"asker {number}")
        key = await self._ask(asker, number, chance)
        clients = [self._system.client(f"reader {n} of turn {number}") for n in range(chance.choice((1, 1, 2)))]
        reads = [read(client, key, chance) for client in clients]
        if number % CANCELLED_OF == CANCELLED_OF // 2:
            first = await asker.read(key, most=LEFT_AFTER_FRAMES, life_s=CUT_AFTER_S)
            await asker.cancel(key)
            reads.append(read(asker, key, chance, first.frames[-1].seq if first.frames else BEFORE_FIRST))
        await asyncio.gather(*reads)
        await asker.look(key)
        for client in (asker, *clients):
            client.close()
        self.ended += 1
        self._slots.release()

    async def _ask(self, asker: Client, number: int, chance: random.Random) -> TurnKey:
        """Again and again with one key: what became of the times before, nobody knows."""
        asked = question(number, chance, self._faults)
        while True:
            key = await asker.ask(asked.line, f"turn-{number}", model=asked.model, on_interrupt=asked.on_interrupt)
            if key is not None:
                return key
            await asyncio.sleep(chance.uniform(0, AWAY_S_MAX))


async def read(client: Client, key: TurnKey, chance: random.Random, cursor: Seq = BEFORE_FIRST) -> None:
    """To the end, over as many connections as it takes, each of which is cut after a while; between them he looks."""
    over = ""
    while over != "ended":
        connection = await client.read(key, cursor, life_s=chance.expovariate(1 / CUT_AFTER_S))
        cursor = connection.frames[-1].seq if connection.frames else cursor
        over = connection.over
        await client.look(key)
        await asyncio.sleep(chance.uniform(0, AWAY_S_MAX))
