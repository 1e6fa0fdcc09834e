"""A continued answer: repetitions of the model are removed, and a turn's time limit counts all attempts."""

import pytest
from prometheus_client import REGISTRY

from tailrace.proto.entries import Event
from tailrace.proto.ids import Tenant
from tests.harness import readers
from tests.harness.generator_in_loop import words
from tests.harness.own_system import OwnSystem
from tests.integration.conftest import Gateway
from tests.promises import Story


def repetitions() -> float:
    return REGISTRY.get_sample_value("tailrace_generator_repetitions_total") or 0.0


@pytest.mark.rule("R70")
@pytest.mark.filterwarnings("ignore:The model 'claude-sonnet-4-5' is deprecated:DeprecationWarning")
@pytest.mark.parametrize("model", ["claude-sonnet-4-5", "claude-sonnet-5-5"], ids=["prefill", "user message"])
async def test_repeated_words_at_a_continuation_are_removed(
    own: OwnSystem, own_gateway: Gateway, tenant: Tenant, model: str
) -> None:
    """The model repeats five words at each of two continuations."""
    before = repetitions()
    async with own.running_generator():
        key = await own.append_request("words=40 rate=0 repeat=5 fault=cut@17x2", tenant=tenant, model=model)
        received = await readers.read(own_gateway.client, key.turn)
        turn = await own.wait_for_end(key)
    history = await readers.read_history(own.log, key, readers.build_reader("reader", key, received))
    assert (turn.text, turn.outcome, turn.attempt) == (words(40), "completed", 3)
    assert history.readers[0].received == Story(words(40), turn.usage, "completed")
    entries = [stored.entry for stored in await own.log.read_entries(key)]
    left_out = [entry.left_out for entry in entries if isinstance(entry, Event) and entry.left_out]
    assert left_out == [len(words(5))] * 2
    assert repetitions() == before + 2


@pytest.mark.rule("R71")
async def test_the_time_limit_of_a_turn_includes_the_time_of_killed_generators(own: OwnSystem) -> None:
    """It is computed from the times in the log. The next generator makes no call."""
    await own.shorten_lease(0.2)
    key = await own.append_request("words=500 rate=20")
    # More than half a second of the answer, one word an entry.
    assert await own.run_and_kill_after(16)
    interrupted = await own.log.read_turn(key)
    assert interrupted.worked_s >= 0.5
    calls = await own.calls()
    async with own.running_generator(deadline_s=0.5):
        turn = await own.wait_for_end(key)
        await own.wait_until_acknowledged()
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.text) == ("failed", "deadline_exceeded", interrupted.text)
    assert await own.modes(key) == ["fresh"]
    assert await own.calls() == calls
    await own.wait_for_open_streams(0)
