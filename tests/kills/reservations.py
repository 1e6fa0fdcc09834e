"""Kills gateways that have reserved money and slots: before and after they have stored the turn or the batch."""

import asyncio
from collections.abc import Sequence

import httpx2

from tailrace.gateway.auth.authenticate import LOCAL
from tests.checker.recorded_client import Client
from tests.checker.recorded_system import RecordedSystem
from tests.harness.processes import Process
from tests.harness.until import until
from tests.kills.paused_process import MOMENTS, Moment
from tests.kills.round import ENDED_S_MAX, PAUSED_S_MAX, kill_one

INPUTS = 3


async def kill_reserving_gateways(system: RecordedSystem) -> None:
    """Kills a gateway at each moment, and waits until the turns that were stored have ended."""
    async with await system.new_generator():
        # One after the other: each gets the next number.
        made = {moment: (await system.new_gateway(KILLS_ROLE=moment), system.clients[-1]) for moment in MOMENTS}
        await asyncio.gather(*[_kill_at(system, moment, *one) for moment, one in made.items()])
        await system.wait_until_settled(ENDED_S_MAX)


async def _kill_at(system: RecordedSystem, moment: Moment, gateway: Process, http: httpx2.AsyncClient) -> None:
    """Kills a gateway in the middle of the POSTs of a turn and of a batch of each kind."""
    client = Client(system.folder, f"client of {moment}", [http], LOCAL.access.tenant)
    async with gateway:
        dear, cheap = ([f"#sim words=2 rate=0 tag={moment}{via}{n}-" for n in range(INPUTS)] for via in "db")
        posting = [
            asyncio.create_task(client.post(f"#sim words=2 rate=0 tag={moment}-", f"turn-{moment}")),
            asyncio.create_task(client.post_batch(by_id(dear), f"turns-{moment}", "messages")),
            asyncio.create_task(client.post_batch(by_id(cheap), f"batch-{moment}", "message_batches")),
        ]
        await until(lambda: len(gateway.find_lines("paused")) == len(posting), PAUSED_S_MAX)
        kill_one(system, moment, gateway, ())
        await asyncio.gather(*posting)
        client.close()


def by_id(questions: Sequence[str]) -> dict[str, str]:
    """Returns the inputs of a batch by `custom_id`."""
    return {f"c{number}": question for number, question in enumerate(questions)}
