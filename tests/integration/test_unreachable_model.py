"""A model that cannot be connected to (R135): a turn waits for it, visibly, and a cancellation or a restart ends it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tailrace.deploy.local import ports
from tailrace.proto import events
from tailrace.proto.entries import Event
from tailrace.proto.ids import TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.cancellation import append_cancellation
from tailrace.proto.ownership import ScopedKey
from tests.harness.generator_in_loop import failure_code, words
from tests.harness.own_system import OwnSystem
from tests.harness.stop_server import stop
from tests.harness.until import until

LEASE_S = 1.0


@pytest.fixture
def port() -> int:
    """A port on which nothing listens."""
    [port] = ports.find_free(1)
    return port


@asynccontextmanager
async def forward(port: int, url: str) -> AsyncIterator[None]:
    """Lets `port` be the server at `url`."""
    host, _, target = url.removeprefix("http://").partition(":")

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection(host, int(target))
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        await stop(server)


async def obstacles(log: TurnLog, key: TurnKey) -> list[str]:
    """Returns the obstacles of the stored waits."""
    stored = [one.entry for one in await log.read_entries(ScopedKey.whole(key))]
    waits = [events.decode_wait(entry.event) for entry in stored if isinstance(entry, Event) and entry.is_hidden]
    return [wait.obstacle for wait in waits if wait is not None]


async def wait_for_wait(own: OwnSystem, key: TurnKey) -> None:
    async def has_wait() -> bool:
        return bool(await obstacles(own.log, key))

    await until(has_wait)


@pytest.mark.rule("R135")
@pytest.mark.rule("F20")
async def test_a_turn_waits_for_a_model_that_refuses_connections_and_is_answered_when_it_is_back(
    own: OwnSystem, port: int
) -> None:
    """Longer than the tries of a call, in one attempt, and its lease is kept."""
    await own.shorten_lease(LEASE_S)
    async with own.running_generator(claude_url=f"http://127.0.0.1:{port}", call_tries_max=2, call_wait_s=0.01):
        key = await own.append_request("words=9 rate=0")
        await wait_for_wait(own, key)
        await asyncio.sleep(2 * LEASE_S)
        assert (await own.log.read_turn(ScopedKey.whole(key))).end is None
        async with forward(port, own.claude):
            turn = await own.wait_for_end(key)
            await own.wait_until_acknowledged()
    assert (turn.outcome, turn.text, turn.attempt, await own.calls()) == ("completed", words(9), 1, 1)
    assert await obstacles(own.log, key) == ["connection refused"]


@pytest.mark.rule("R135")
async def test_the_wait_ends_after_its_setting_with_the_obstacle_and_what_to_do(own: OwnSystem) -> None:
    """The host of the operator's own address is not in the error, which users see."""
    async with own.running_generator(claude_url="http://secret-host.invalid", call_tries_max=1, unreachable_wait_s=1):
        turn = await own.answer("words=9")
    assert (failure_code(turn), turn.attempt) == ("backend_unreachable", 1)
    assert turn.error is not None
    assert turn.error.message == (
        "no connection to the model: no such host for 1 s. Retry later; operator: the generator's log names the host"
    )


@pytest.mark.rule("R135")
async def test_a_cancellation_ends_the_wait_at_once(own: OwnSystem, port: int) -> None:
    async with own.running_generator(claude_url=f"http://127.0.0.1:{port}", call_tries_max=1):
        key = await own.append_request("words=9")
        await wait_for_wait(own, key)
        async with asyncio.timeout(1):
            await append_cancellation(own.log, ScopedKey.whole(key), cause="request", by=None, timeout_s=1)
            await own.wait_until_acknowledged()
    assert (await own.log.read_turn(ScopedKey.whole(key))).outcome == "cancelled"


@pytest.mark.rule("R135")
@pytest.mark.rule("R73")
async def test_a_restart_during_the_wait_hands_the_turn_over(own: OwnSystem, port: int) -> None:
    """The attempt does not count, and the next generator makes another one at once."""
    async with own.running_generator(claude_url=f"http://127.0.0.1:{port}", call_tries_max=1, grace_s=0) as stopping:
        key = await own.append_request("words=9 rate=0")
        await wait_for_wait(own, key)
        stopping.set()

        async def is_given_back() -> bool:
            turn = await own.log.read_turn(ScopedKey.whole(key))
            return turn.end is None and turn.fruitless == 0

        await until(is_given_back, 2)
    async with own.running_generator():
        turn = await own.wait_for_end(key)
    assert (turn.outcome, turn.text, turn.attempt) == ("completed", words(9), 2)


@pytest.mark.rule("R135")
async def test_the_wait_ends_at_the_deadline_of_the_turn(own: OwnSystem, port: int) -> None:
    async with own.running_generator(claude_url=f"http://127.0.0.1:{port}", call_tries_max=1, deadline_s=1):
        turn = await own.answer("words=9")
    assert (failure_code(turn), turn.attempt) == ("deadline_exceeded", 1)
