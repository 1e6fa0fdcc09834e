"""A broken answer that is taken up: what of it is told, counted, and bounded over all attempts."""

from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.proto.entries import Event
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, TurnLog
from tests.harness import readers
from tests.harness.generator_in_loop import (
    ask,
    ended,
    is_acknowledged,
    modes,
    open_streams,
    shorten_lease,
    stats,
    words,
    working,
)
from tests.harness.killable_generator import killed_after
from tests.harness.until import until
from tests.integration.conftest import NewGateway
from tests.promises import Story

PREFILLED, LATER = "claude-sonnet-4-5", "claude-sonnet-5-5"

pytestmark = pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated:DeprecationWarning")


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


def repetitions() -> float:
    return REGISTRY.get_sample_value("tailrace_generator_repetitions_total") or 0.0


@pytest.mark.rule("R70")
@pytest.mark.parametrize("model", [PREFILLED, LATER])
async def test_a_model_that_repeats_itself_is_not_heard_to(
    own_server: NatsServer, own_log: TurnLog, claude: str, new_gateway: NewGateway, tenant: Tenant, model: str
) -> None:
    """Five words again at each of two seams: the reader gets the answer once; the log says how much was left out."""
    gateway = await new_gateway(own_server.url)
    before = repetitions()
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=40 rate=0 repeat=5 fault=cut@17x2", tenant=tenant, model=model)
        told = await readers.read(gateway.client, key.turn)
        turn = await ended(own_log, key)
    history = await readers.history(own_log, key, readers.reader("there", key, told))
    assert (turn.text, turn.outcome, turn.attempt) == (words(40), "completed", 3)
    assert history.readers[0].told == Story(words(40), turn.usage, "completed")
    left_out = [s.entry.left_out for s in await own_log.replay(key) if isinstance(s.entry, Event) and s.entry.left_out]
    assert left_out == [len(words(5))] * 2
    assert repetitions() == before + 2


@pytest.mark.rule("R71")
async def test_a_turn_has_its_time_once_and_not_once_for_each_generator(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """What dead generators have worked on it is counted by the times in the log: the next one makes no call for it."""
    await shorten_lease(own_connection, 0.2)
    key = await ask(own_log, "words=500 rate=20")
    # Its lease is renewed by nobody else: more than half a second of the answer, each word stored by itself.
    assert await killed_after(16, own_server.url, claude)
    left_behind = await own_log.turn(key)
    assert left_behind.worked_s >= 0.5
    calls = (await stats(claude))["calls"]
    async with working(own_server.url, claude, deadline_s=0.5):
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.text) == ("failed", "deadline_exceeded", left_behind.text)
    assert await modes(own_log, key) == ["fresh"]
    assert (await stats(claude))["calls"] == calls
    await open_streams(claude, 0)
