"""Clients that post batches, read them over connections that are cut, cancel some, delete some or their inputs.

The seed decides the batches, and which failures of Anthropic's Message Batches they ask for.
"""

import asyncio
import random
from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

from tailrace.features.batches.input_lines import child_key
from tailrace.proto.entries import Via
from tailrace.proto.ids import TurnKey
from tests.chaos.faults import MESSAGE_BATCH
from tests.chaos.load import RECONNECT_S_MAX, Load, cancel, delete, read, until_accepted
from tests.checker.recorded_client import Client

# Few sizes, so that a search for a message batch also finds those of other batches.
INPUTS_MAX = 4
# An input is answered after at most this long. Some are deleted while the batch still runs.
WAIT_S_MAX = 6.0
# Mean life of a connection that reads results, which are sent within some milliseconds.
CONNECTION_S = 0.05
# As many as there are gateways.
LAST_READS = 2

Fate = Literal["read", "cancel", "delete", "delete inputs"]


class BatchLoad(Load):
    """The same with batches. The first ones ask for each failure once, and are read to their end."""

    what = "batches"

    async def _use_one(self, number: int) -> None:
        chance = random.Random(f"{number} {self._chance.random()}")
        failure = self._failures[number] if number < len(self._failures) else None
        fate: Fate = "read" if failure else chance.choice(get_args(Fate))
        via: Via = "message_batches" if failure else chance.choice(get_args(Via))
        inputs = new_inputs(number, chance, failure)
        clients = [self._system.client(f"{name} of batch {number}") for name in ("client", "reader", "watcher")]
        client, reader, watcher = clients
        key = await until_accepted(partial(client.post_batch, inputs, f"batch-{number}", via), chance)
        children = [child_key(key, index) for index in range(len(inputs))]
        following = [follow(reader, watcher, key, chance)] if fate != "delete" else []
        if fate == "delete" and via == "message_batches":
            # The estimate of a message batch that is deleted before its results are read stays counted for a day:
            # Anthropic bills it, and nothing else knows what it costs.
            await read(client, key, chance)
        await asyncio.gather(*following, change(client, key, children, fate, chance))
        for child in LAST_READS * children:
            await client.get(child)
        for _ in range(LAST_READS):
            await client.get_batch(key)
        for _ in range(LAST_READS):
            await read_results(client, key, chance)
        for one in clients:
            one.close()


async def change(client: Client, key: TurnKey, children: Sequence[TurnKey], fate: Fate, chance: random.Random) -> None:
    """Cancels or deletes the batch some seconds after the POST, or deletes the turns of all inputs but one."""
    match fate:
        case "cancel":
            await asyncio.sleep(chance.uniform(0, WAIT_S_MAX))
            await cancel(client, key, chance)
        case "delete" | "delete inputs":
            for deleted in [key] if fate == "delete" else children[1:]:
                await asyncio.sleep(chance.uniform(0, WAIT_S_MAX / 2))
                await delete(client, deleted, chance)


def new_inputs(number: int, chance: random.Random, failure: str | None) -> dict[str, str]:
    """Returns questions by `custom_id`, which is `c` and the input's number. The first one asks for the failure."""
    # The first one is answered last, so that the batch still runs when the others are deleted.
    waits_s = sorted((chance.uniform(0, WAIT_S_MAX) for _ in range(chance.randint(1, INPUTS_MAX))), reverse=True)
    inputs = {
        f"c{index}": f"#sim words=3 rate=0 wait={wait_s:.1f} tag=b{number}x{index}-"
        for index, wait_s in enumerate(waits_s)
    }
    if failure is not None:
        inputs["c0"] += f" {MESSAGE_BATCH[failure]}"
    return inputs


async def follow(reader: Client, watcher: Client, key: TurnKey, chance: random.Random) -> None:
    """Reads the events to the batch's end. Meanwhile `watcher` reads counts and results."""
    reading = asyncio.create_task(read(reader, key, chance))
    while not reading.done():
        await watcher.get_batch(key)
        await watcher.results(key, life_s=chance.expovariate(1 / CONNECTION_S))
        await asyncio.wait([reading], timeout=chance.uniform(0, 1))
    await reading


async def read_results(client: Client, key: TurnKey, chance: random.Random) -> None:
    """Reads all results: cuts the first connection, and goes on after one of its lines."""
    after = -1
    life_s: float | None = chance.expovariate(1 / CONNECTION_S)
    while True:
        one = await client.results(key, after, life_s=life_s)
        if one.status == 404 or (one.is_whole and life_s is None):
            return
        life_s = None
        if one.lines:
            after = int(chance.choice(one.lines).custom_id.removeprefix("c"))
        await asyncio.sleep(chance.uniform(0, RECONNECT_S_MAX))
