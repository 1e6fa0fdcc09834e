"""Clients that post turns, read over connections that are cut, get and cancel, until the load is over.

The seed decides the requests, and which failures of the model they ask for.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from tailrace.proto.entries import OnInterrupt
from tailrace.proto.ids import BEFORE_FIRST, Seq, TurnKey
from tests.chaos.faults import MODEL
from tests.chaos.system import ChaosSystem
from tests.checker.recorded_client import Client

# A browser reconnects after about this long.
RECONNECT_S_MAX = 0.2
CONNECTION_S = 2.0
"""Mean life of a reader's connection."""
# The last of so many turns is cancelled. Not one of the first nine: each asks for another failure of the model, which a
# cancelled turn may not reach. An odd number, so that some of the cancelled turns ask for a failure and some do not.
CANCELLED_OF = 11
FRAMES_BEFORE_CANCEL = 8
# The first prompts ask for each failure once, because a short run has few prompts. After them, one of so many does.
FAILING_OF = 2


class Load:
    """Setting `is_over` ends the posts; the turns so far are read to their end."""

    what = "turns"

    def __init__(
        self, system: ChaosSystem, chance: random.Random, concurrent_turns: int, failures: Sequence[str]
    ) -> None:
        self.posted = self.ended = 0
        self.is_over = asyncio.Event()
        self._system = system
        self._chance = chance
        self._slots = asyncio.Semaphore(concurrent_turns)
        self._failures = failures

    async def run(self) -> None:
        """Returns when `is_over` is set and every turn has ended."""
        async with asyncio.TaskGroup() as group:
            while not self.is_over.is_set():
                await self._slots.acquire()
                group.create_task(self._run_one(self.posted))
                self.posted += 1

    async def _run_one(self, number: int) -> None:
        await self._use_one(number)
        self.ended += 1
        self._slots.release()

    async def _use_one(self, number: int) -> None:
        chance = random.Random(f"{number} {self._chance.random()}")
        client = self._system.client(f"client {number}")
        prompt = new_prompt(number, chance, self._failures)
        post = partial(client.post, prompt.line, f"turn-{number}", model=prompt.model, on_interrupt=prompt.on_interrupt)
        key = await until_accepted(post, chance)
        readers = [self._system.client(f"reader {n} of turn {number}") for n in range(chance.choice((1, 1, 2)))]
        reads = [read(reader, key, chance) for reader in readers]
        if number % CANCELLED_OF == CANCELLED_OF - 1:
            first = await client.read(key, most=FRAMES_BEFORE_CANCEL, life_s=CONNECTION_S)
            await cancel(client, key, chance)
            reads.append(read(client, key, chance, first.frames[-1].seq if first.frames else BEFORE_FIRST))
        await asyncio.gather(*reads)
        await client.get(key)
        for one in (client, *readers):
            one.close()


async def until_accepted(post: Callable[[], Awaitable[TurnKey | None]], chance: random.Random) -> TurnKey:
    """Repeats a POST with an idempotency key until it is accepted."""
    while True:
        if (key := await post()) is not None:
            return key
        await asyncio.sleep(chance.uniform(0, RECONNECT_S_MAX))


async def cancel(client: Client, key: TurnKey, chance: random.Random) -> None:
    """Repeats the cancellation until it is answered: without one, a run proves nothing about cancellations."""
    while True:
        if (await client.cancel(key)).outcome == "ok":
            return
        await asyncio.sleep(chance.uniform(0, RECONNECT_S_MAX))


async def delete(client: Client, key: TurnKey, chance: random.Random) -> None:
    """Repeats the deletion until it is answered: 404 if an earlier one has deleted the turn, or if there is none."""
    while True:
        if (await client.delete(key)).status in (200, 404):
            return
        await asyncio.sleep(chance.uniform(0, RECONNECT_S_MAX))


async def read(client: Client, key: TurnKey, chance: random.Random, cursor: Seq = BEFORE_FIRST) -> None:
    """Reads to the turn's end, over connections that are cut after a while; gets the turn between them."""
    over = ""
    while over != "ended":
        connection = await client.read(key, cursor, life_s=chance.expovariate(1 / CONNECTION_S))
        cursor = connection.frames[-1].seq if connection.frames else cursor
        over = connection.over
        await client.get(key)
        await asyncio.sleep(chance.uniform(0, RECONNECT_S_MAX))


class Prompt(msgspec.Struct, frozen=True):
    line: str
    model: str
    on_interrupt: OnInterrupt


def new_prompt(number: int, chance: random.Random, failures: Sequence[str]) -> Prompt:
    """Returns mostly texts, which continue after an interruption in both ways; some answers restart."""
    tag = f"t{number}-"
    count, rate, more = chance.randint(20, 120), chance.choice((20, 40, 80)), ""
    model = chance.choice(("claude-sonnet-5-5", "claude-haiku-5-5", "claude-sonnet-4-5"))
    on_interrupt: OnInterrupt = "continue"
    if failures and (number < len(failures) or number % FAILING_OF == 0):
        kind = failures[number % len(failures)]
        # The generator may be killed before the first call has failed.
        more = f" fault={kind}@{MODEL[kind]}x2"
    elif chance.random() < 0.2:
        # An interruption loses this answer, so it must be short enough to complete between two kills.
        count, rate = chance.randint(5, 20), 80
        more = chance.choice(("", " thinking=10", " tool=look"))
        on_interrupt = "continue" if more else "restart"
    return Prompt(f"#sim words={count} rate={rate} tag={tag}{more}", model, on_interrupt)
