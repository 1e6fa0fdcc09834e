"""A generator process that kills itself with SIGKILL after its nth append, or when it calls the model with a word."""

import asyncio
import os
from collections.abc import Callable
from functools import partial
from signal import SIGKILL
from typing import Any

from tailrace.features.batches import message_batches
from tailrace.features.batches.runner import BatchRunner
from tailrace.features.generators import FEATURES
from tailrace.generators import delta_buffer
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import MessagesApi
from tailrace.generators.backends.model_event import Put
from tailrace.generators.serve import serve
from tailrace.generators.settings import Settings
from tailrace.generators.turn_runner import TurnRunner
from tailrace.proto.chain import Chain
from tailrace.proto.entries import Entry, Event, encode
from tailrace.proto.ids import Seq, TurnKey
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.nats.leases import Delivery
from tailrace.proto.nats.log_server import Published
from tailrace.proto.service import Stop
from tailrace.proto.subjects import GENERATORS
from tests.harness.forks import FORKS
from tests.harness.generator_in_loop import running_generator
from tests.harness.processes import as_user
from tests.harness.until import until

LIFE_S_MAX = 20.0
POLL_S = 0.02


async def run_and_kill_after(
    appends: int,
    nats_url: str,
    claude_url: str,
    *,
    is_batch: bool = False,
    is_before: bool = False,
    containing: bytes = b"",
) -> bool:
    """Runs one turn, or one batch with its turns, in a generator that is killed after its nth append.

    With `is_before`, it is killed right before this append. With `containing`, only entries count that have these
    bytes. Returns False if it ended before that.
    """
    options = {"is_batch": is_batch, "is_before": is_before, "containing": containing}
    return await _run(run_until_killed, nats_url, claude_url, appends, **options)


async def run_and_kill_at_call(word: str, nats_url: str, claude_url: str) -> bool:
    """Runs a generator that ends another turn first, and is killed when it calls the model with this word.

    Returns False if it did not make such a call.
    """
    return await _run(run_until_called, word, nats_url, claude_url)


def run_until_killed(
    nats_url: str, claude_url: str, appends: int, *, is_batch: bool, is_before: bool, containing: bytes
) -> None:
    append, publish_soon, appended = TurnLog.append, TurnLog.publish_soon, 0

    def count(entry: Entry) -> None:
        nonlocal appended
        appended += containing in encode(entry)
        if is_before and appended == appends:
            os.kill(os.getpid(), SIGKILL)

    def kill_after_last() -> None:
        if appended == appends:
            os.kill(os.getpid(), SIGKILL)

    async def killing_append(self: TurnLog, key: TurnKey, chain: Chain, entry: Entry, **options: Any) -> Chain:
        if not options:
            count(entry)
        chain = await append(self, key, chain, entry, **options)
        kill_after_last()
        return chain

    def killing_publish(self: TurnLog, key: TurnKey, entry: Event, fence: Seq, done: Published) -> bool:
        def finish(outcome: Seq | Exception) -> None:
            if not isinstance(outcome, Exception):
                kill_after_last()
            done(outcome)

        # A large event is appended by `killing_append`.
        is_sent = publish_soon(self, key, entry, fence, finish)
        if is_sent:
            count(entry)
        return is_sent

    TurnLog.append = killing_append  # type: ignore[method-assign]
    TurnLog.publish_soon = killing_publish  # type: ignore[assignment,method-assign]
    # Each delta is an entry of its own: with joined deltas, the answer of a busy machine may have fewer appends.
    delta_buffer.JOINED_BYTES_MAX = 0
    message_batches.POLL_WAIT_S = POLL_S
    asyncio.run(_serve_one(nats_url, claude_url, BatchRunner if is_batch else TurnRunner))


async def _serve_one(nats_url: str, claude_url: str, runner: Any) -> None:
    """Serves until `runner` has run one turn or one batch."""
    stop, run = Stop(), runner.run

    async def run_once(self: object, *given: Any) -> object:
        try:
            return await run(self, *given)
        finally:
            stop.set()

    runner.run = run_once
    settings = Settings(
        anthropic_api_key="sk-test",
        anthropic_base_url=claude_url,
        connect_timeout_s=5,
        stall_timeout_s=5,
        call_tries_max=1,
        attempts_max=9,
        concurrency=1,
        deadline_s=30,
        grace_s=30,
    )
    connection = await Connection.open(as_user(nats_url, GENERATORS), "killable-generator")
    await serve(settings, connection, stop, features=FEATURES)
    await connection.close()


def run_until_called(word: str, nats_url: str, claude_url: str) -> None:
    ended: list[TurnKey] = []
    stream, ack = MessagesApi.stream, Delivery.ack

    async def killing_stream(self: MessagesApi, call: Call, put: Put) -> None:
        if word in str(call.messages):
            await until(lambda: ended)
            os.kill(os.getpid(), SIGKILL)
        await stream(self, call, put)

    async def recorded_ack(self: Delivery) -> None:
        ended.append(self.key)
        await ack(self)

    MessagesApi.stream = killing_stream  # type: ignore[method-assign]
    Delivery.ack = recorded_ack  # type: ignore[method-assign]
    asyncio.run(_work(nats_url, claude_url))


async def _work(nats_url: str, claude_url: str) -> None:
    async with running_generator(nats_url, claude_url):
        await asyncio.sleep(LIFE_S_MAX)


async def _run(target: Callable[..., None], *given: object, **options: object) -> bool:
    process = FORKS.Process(target=partial(target, *given, **options))
    process.start()
    try:
        await asyncio.to_thread(process.join, LIFE_S_MAX + 10)
        assert process.exitcode in (0, -SIGKILL), process.exitcode
        return process.exitcode != 0
    finally:
        process.kill()
        process.join()
        process.close()
