"""A generator that is killed right after the nth entry that it stores, or by a question: SIGKILL. Runs alone."""

import asyncio
import multiprocessing
import os
from collections.abc import AsyncGenerator, Callable
from signal import SIGKILL

from tailrace.generators.__main__ import find_anthropic_api, open_backends
from tailrace.generators.attempt import TurnRunner
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import MessagesApi
from tailrace.generators.backends.message_batches_api import MessageBatchesApi
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.generators.batches import message_batches
from tailrace.generators.batches.runner import BatchLane, BatchRunner
from tailrace.generators.budget import cut_at_cost, limit_cost
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.generators.settings import Settings
from tailrace.generators.worker import Job, Worker
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry
from tailrace.proto.fold import Turn
from tailrace.proto.nats import BlobStore, Connection, Counters, Deliveries, Slots, Tombstones, TurnLog, fullness
from tailrace.proto.nats.settlement import Settlement
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tailrace.proto.subjects import GENERATORS, TurnKey
from tests.harness.generator_in_loop import working
from tests.harness.processes import as_user
from tests.harness.until import until

# A server process imports everything once; each generator is a fork of it and begins within milliseconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.harness.killable_generator"])
ROOM_BYTES = 64 * 1024 * 1024
LIFE_S_MAX = 20.0


class MortalLog(TurnLog):
    """The log of a process that does not outlive the `appends`th entry; `is_before`: that is never stored."""

    def __init__(self, connection: Connection, appends: int, *, is_before: bool = False) -> None:
        super().__init__(connection)
        self._left = appends
        self._is_before = is_before

    async def append(self, key: TurnKey, chain: Chain, entry: Entry, *, timeout_s: float = 10) -> Chain:
        if self._is_before and self._left == 1:
            os.kill(os.getpid(), SIGKILL)
        chain = await super().append(key, chain, entry, timeout_s=timeout_s)
        self._left -= 1
        if not self._left:
            os.kill(os.getpid(), SIGKILL)
        return chain


class LastTurnRunner(TurnRunner):
    """Carries one turn; after that its process is to stop."""

    stop: asyncio.Event

    async def run(self, key: TurnKey, deadline_s: float, lease: str = "") -> Turn:
        try:
            return await super().run(key, deadline_s, lease)
        finally:
            self.stop.set()


class LastBatchRunner(BatchRunner):
    """Carries one batch, with the turns that it has asked; after that its process is to stop."""

    stop: asyncio.Event

    async def run(self, key: TurnKey) -> Turn:
        try:
            return await super().run(key)
        finally:
            self.stop.set()


# Its waits are short.
message_batches.LOOK_S = 0.02


async def carry_one(
    nats_url: str, claude_url: str, appends: int, backends: str, *, is_batch: bool, is_before: bool
) -> None:
    connection = await Connection.open(as_user(nats_url, GENERATORS), "mortal")
    settings = Settings(
        anthropic_api_key="sk-test",
        anthropic_base_url=claude_url,
        backends=backends,
        connect_timeout_s=5,
        stall_timeout_s=5,
    )
    log = MortalLog(connection, appends, is_before=is_before)
    retry = Retry(tries_max=1, wait_s=0, wait_max_s=0)
    blobs = BlobLoader(BlobStore(connection), FairSemaphore(ROOM_BYTES))
    async with open_backends(settings) as (orders, opened_backends):
        name = f"mortal-{os.getpid()}"
        claude = find_anthropic_api(opened_backends)
        caller = ModelCaller(opened_backends, orders, retry, blobs)
        runner = (TurnRunner if is_batch else LastTurnRunner)(
            log, caller, Planner(9, [cut_at_cost]), name=name, sinks=[limit_cost]
        )
        bodies, counters = BlobStore(connection), Counters(connection)
        batches = LastBatchRunner(
            log,
            bodies,
            Tombstones(connection),
            counters,
            lambda: fullness(connection),
            name=name,
            concurrency=1,
            message_batches=MessageBatchesApi(claude.client)
            if (claude := find_anthropic_api(opened_backends))
            else None,
            blobs=blobs,
        )
        stop = asyncio.Event()
        for last in (runner, batches):
            if isinstance(last, LastTurnRunner | LastBatchRunner):
                last.stop = stop
        deliveries = await Deliveries.open(connection, GENERATORS)
        settlement = Settlement(counters, Slots(connection))
        worker = Worker(
            log, deliveries, runner, settlement.settle, [BatchLane(batches)], concurrency=1, deadline_s=30, grace_s=30
        )
        await worker.run(stop)
    await connection.close()


def main(
    nats_url: str,
    claude_url: str,
    appends: int,
    backends: str,
    environ: dict[str, str],
    is_batch: bool,
    is_before: bool,
) -> None:
    os.environ.update(environ)
    asyncio.run(carry_one(nats_url, claude_url, appends, backends, is_batch=is_batch, is_before=is_before))


async def killed_after(
    appends: int,
    nats_url: str,
    claude_url: str,
    backends: str = "claude",
    environ: dict[str, str] | None = None,
    *,
    is_batch: bool = False,
    is_before: bool = False,
) -> bool:
    """Has a generator take one turn, or one batch with its turns, and be killed after that many entries.

    With `is_before`, right before the last of them is stored: what it has done for that entry is done.

    False when it came to the end unharmed.

    `environ` is what other backends than claude read.
    """
    return await _killed(main, nats_url, claude_url, appends, backends, environ or {}, is_batch, is_before)


async def killed_by(word: str, nats_url: str, claude_url: str) -> bool:
    """Has a generator work until it calls the model with that word, which kills it; before that it ends another turn.

    False when that did not come.
    """
    return await _killed(poisoned, word, nats_url, claude_url)


def poisoned(word: str, nats_url: str, claude_url: str) -> None:
    ended: list[TurnKey] = []
    answer, has_ended = MessagesApi.answer, Worker._run_to_end

    async def deadly(self: MessagesApi, call: Call) -> AsyncGenerator[ModelEvent, None]:
        if word in str(call.messages):
            await until(lambda: ended)
            os.kill(os.getpid(), SIGKILL)
        async for raw in answer(self, call):
            yield raw

    async def recorded(self: Worker, key: TurnKey, job: Job) -> bool:
        is_ended = await has_ended(self, key, job)
        ended.append(key)
        return is_ended

    # As a patch, for the part is not to know.
    MessagesApi.answer = deadly  # type: ignore[method-assign]
    Worker._run_to_end = recorded  # type: ignore[method-assign]
    asyncio.run(work(nats_url, claude_url))


async def work(nats_url: str, claude_url: str) -> None:
    async with working(nats_url, claude_url):
        await asyncio.sleep(LIFE_S_MAX)


async def _killed(target: Callable[..., None], *given: object) -> bool:
    process = FORKS.Process(target=target, args=given)
    process.start()
    try:
        await asyncio.to_thread(process.join, LIFE_S_MAX + 10)
        assert process.exitcode in (0, -SIGKILL), process.exitcode
        return process.exitcode != 0
    finally:
        process.kill()
        process.join()
        process.close()
