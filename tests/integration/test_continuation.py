"""A continued answer: repetitions of the model are removed, and a turn's time limit counts all attempts."""

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
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
from tests.integration.conftest import Gateway
from tests.promises import Story


def repetitions() -> float:
    return REGISTRY.get_sample_value("tailrace_generator_repetitions_total") or 0.0


@pytest.mark.rule("R70")
@pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-5-5"], ids=["prefill", "user message"])
async def test_repeated_words_at_a_continuation_are_removed(
    own_server: NatsServer, own_log: TurnLog, own_claude: str, own_gateway: Gateway, tenant: Tenant, model: str
) -> None:
    """The model repeats five words at each of two continuations."""
    before = repetitions()
    async with working(own_server.url, own_claude):
        key = await ask(own_log, "words=40 rate=0 repeat=5 fault=cut@17x2", tenant=tenant, model=model)
        received = await readers.read(own_gateway.client, key.turn)
        turn = await ended(own_log, key)
    history = await readers.history(own_log, key, readers.reader("reader", key, received))
    assert (turn.text, turn.outcome, turn.attempt) == (words(40), "completed", 3)
    assert history.readers[0].received == Story(words(40), turn.usage, "completed")
    entries = [stored.entry for stored in await own_log.replay(key)]
    left_out = [entry.left_out for entry in entries if isinstance(entry, Event) and entry.left_out]
    assert left_out == [len(words(5))] * 2
    assert repetitions() == before + 2


@pytest.mark.rule("R71")
async def test_the_time_limit_of_a_turn_includes_the_time_of_killed_generators(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, own_claude: str
) -> None:
    """It is computed from the times in the log. The next generator makes no call."""
    await shorten_lease(own_connection, 0.2)
    key = await ask(own_log, "words=500 rate=20")
    # More than half a second of the answer, one word an entry.
    assert await killed_after(16, own_server.url, own_claude)
    interrupted = await own_log.turn(key)
    assert interrupted.worked_s >= 0.5
    calls = (await stats(own_claude))["calls"]
    async with working(own_server.url, own_claude, deadline_s=0.5):
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.text) == ("failed", "deadline_exceeded", interrupted.text)
    assert await modes(own_log, key) == ["fresh"]
    assert (await stats(own_claude))["calls"] == calls
    await open_streams(own_claude, 0)
