"""Plays an example: the product's generator reads it from a real socket into a real log; the vendor's SDK judges."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

from tailrace.generators.backend_order import BackendOrders, Candidate
from tailrace.generators.backends.anthropic_api import AnthropicApi
from tailrace.generators.call_limits import CallLimits
from tailrace.generators.load_blobs import BlobLoader
from tailrace.generators.model_caller import ModelCaller, OneBackend
from tailrace.generators.planner import Planner
from tailrace.generators.retry import Retry
from tailrace.generators.settings import Settings
from tailrace.generators.turn_runner import TurnRunner
from tailrace.proto.chain import START
from tailrace.proto.end_entry import build_end
from tailrace.proto.errors import FenceLost, LogUnavailable
from tailrace.proto.fold import Turn, contents, without_mark
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import BlobStore, Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.fair_semaphore import FairSemaphore
from tests.conformance.differences import after_kill
from tests.conformance.sdk import accumulate
from tests.harness.turn_builder import request
from tests.sockets.example import Example, plain_stream
from tests.sockets.model_server import ModelServer

DEFAULTS = Settings()
ORDERS = BackendOrders((Candidate("claude"),))
RETRY = Retry(tries_max=3, wait_s=0.01, wait_max_s=0.01)
PLAYED_S_MAX = 30.0
# Until the events before a silence are stored.
STORED_S_MAX = 10.0
# How long other work of a busy process blocks its event loop, and how often.
BLOCKED_S = 0.01
FREE_S = 0.01


class Generator(NamedTuple):
    """A generator with a connection to NATS and a client of the model of its own."""

    runner: TurnRunner
    connection: Connection
    log: TurnLog


async def play(example: Example, server: ModelServer, nats_url: str) -> list[str]:
    """Runs the turn of an example to its end. Returns what is wrong; empty if nothing is."""
    loop, due = asyncio.get_running_loop(), asyncio.Event()
    address = server.play(example, partial(loop.call_soon_threadsafe, due.set))
    key = TurnKey(Tenant("sockets"), TurnId(new_id()))
    blocking = asyncio.create_task(_block()) if example.is_busy else None
    observer = await Connection.open(nats_url, "test-sockets")
    log = TurnLog(observer)
    checking = asyncio.create_task(_check_silence(example, server, key, due, log))
    try:
        async with asyncio.timeout(PLAYED_S_MAX):
            await log.append(key, START, request(max_tokens=10**8))
            is_killed = await _run(example, address, nats_url, key, due, log)
            if is_killed:
                await _run(example, address, nats_url, key, asyncio.Event(), log)
        turn = await TurnLog(observer).read_turn(ScopedKey.whole(key))
    except TimeoutError:
        return [f"the turn has not ended after {PLAYED_S_MAX} s"]
    finally:
        checking.cancel()
        await asyncio.wait({checking})
        if blocking is not None:
            blocking.cancel()
        await log.purge(key)
        await log.purge_events(key)
        await observer.close()
    return [*judge(example, turn, server.calls), *([] if checking.cancelled() else checking.result())]


def judge(example: Example, turn: Turn, calls: int) -> list[str]:
    """Returns what is wrong with the turn of an example, after `calls` model calls."""
    wanted = accumulate(plain_stream(example.lines))["content"]
    found = [without_mark(block) for block in contents(turn.blocks, turn.stop.stop_reason)]
    wrong = [f"{turn.skipped} skipped entries"] if turn.skipped else []
    if turn.error is not None:
        wrong.append(f"{turn.error.code}: {turn.error.message}")
    if turn.outcome == "cancelled":
        if not _is_prefix(found, wanted):
            wrong.append(f"no prefix: {_sizes(found)} of {_sizes(wanted)}")
        return wrong if example.fault == "cancel" else [*wrong, "cancelled"]
    if turn.outcome != "completed":
        wrong.append(f"{turn.outcome}")
    is_interrupted = example.fault in ("close", "reset", "kill")
    if calls > 1 + is_interrupted and not example.may_lose_end:
        wrong.append(f"{calls} calls")
    # Only an interrupted answer may differ in its thinking.
    same = after_kill(found) == after_kill(wanted) if calls > 1 else found == _plain(wanted)
    if not same:
        wrong.append(f"{_sizes(found)} instead of {_sizes(wanted)}")
    return wrong


def _plain(content: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the blocks without fields that the SDK adds as null."""
    return [{name: value for name, value in block.items() if value is not None} for block in content]


def _is_prefix(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """Returns whether `found` is the beginning of `wanted`. Of an open block, each text is a beginning."""
    whole = max(0, len(found) - 1)
    if len(found) > len(wanted) or found[:whole] != _plain(wanted)[:whole]:
        return False
    for block, sent in zip(found[whole:], wanted[whole:], strict=False):
        for name in ("text", "thinking"):
            if not str(sent.get(name, "")).startswith(block.get(name, "")):
                return False
        if block["type"] != sent["type"]:
            return False
    return True


def _sizes(content: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(block["type"], len(str(block))) for block in content]


async def _check_silence(
    example: Example, server: ModelServer, key: TurnKey, due: asyncio.Event, log: TurnLog
) -> list[str]:
    """Ends the server's silence when all events before it are stored. Returns what is wrong if they are not in time."""
    await due.wait()
    if example.fault != "silence":
        return []
    wanted = _texts(accumulate(plain_stream(example.lines[: example.silent_after]))["content"])
    found = list[str]()
    try:
        async with asyncio.timeout(STORED_S_MAX):
            while found != wanted:
                await asyncio.sleep(0.02)
                found = _texts(contents((await log.read_turn(ScopedKey.whole(key))).blocks, None))
    except TimeoutError:
        return [f"{sum(map(len, found))} of {sum(map(len, wanted))} characters were stored before the silence"]
    finally:
        server.goes_on.set()
    return []


def _texts(content: list[dict[str, Any]]) -> list[str]:
    return [block.get("text", block.get("thinking", "")) for block in content]


async def _run(example: Example, address: str, nats_url: str, key: TurnKey, due: asyncio.Event, log: TurnLog) -> bool:
    """Runs the turn with a new generator until it ends, or until it is killed; returns whether it was killed."""
    async with _generator(address, nats_url) as generator:
        running = asyncio.create_task(generator.runner.run(key))
        waiting = asyncio.create_task(due.wait())
        await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if running.done() or example.fault == "silence":
            await running
            return False
        if example.fault == "kill":
            # From now on its closed connection refuses its appends, as after SIGKILL.
            await generator.connection.close()
            running.cancel()
            with suppress(asyncio.CancelledError, LogUnavailable, FenceLost):
                await running
            return True
        await _cancel(log, key)
        with suppress(FenceLost):
            await running
        return False


async def _cancel(log: TurnLog, key: TurnKey) -> None:
    """Ends the turn as a gateway does."""
    while True:
        turn = await log.read_turn(ScopedKey.whole(key))
        if turn.chain.is_ended:
            return
        with suppress(FenceLost):
            await log.append(key, turn.chain, build_end(turn, "cancelled"))
            return


@asynccontextmanager
async def _generator(address: str, nats_url: str) -> AsyncIterator[Generator]:
    connection = await Connection.open(nats_url, "test-generator")
    claude = AnthropicApi("sk-test", address, connect_timeout_s=5.0, stall_timeout_s=30.0)
    blobs = BlobLoader(BlobStore(connection), FairSemaphore(DEFAULTS.large_bytes_max))
    log = TurnLog(connection)
    runner = TurnRunner(
        log,
        ModelCaller({"claude": claude}, OneBackend(ORDERS), RETRY, blobs),
        Planner(DEFAULTS.attempts_max, CallLimits()),
        name=f"generator-{new_id()}",
        filters=(),
        limits=CallLimits(),
        deadline_s=DEFAULTS.deadline_s,
        delta_interval_s=DEFAULTS.delta_interval_s,
    )
    try:
        yield Generator(runner, connection, log)
    finally:
        await claude.close()
        if not connection.closed.is_set():
            await connection.close()


async def _block() -> None:
    """Blocks the event loop again and again, as the work of other turns does."""
    while True:
        time.sleep(BLOCKED_S)  # noqa: ASYNC251  # blocking is the purpose
        await asyncio.sleep(FREE_S)
