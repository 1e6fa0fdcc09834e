"""A model that refuses, hangs, breaks off or stops an answer (F20, F23, F27): calls, continuations and time limits."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from prometheus_client import REGISTRY

from tailrace.proto.entries import Event
from tailrace.proto.ids import Tenant
from tailrace.proto.ownership import ScopedKey
from tests.harness import readers
from tests.harness.faulty_upstream import GARBAGE, HEAD, Break, BrokenAnswer, faulty_claude
from tests.harness.generator_in_loop import failure_code, words
from tests.harness.killable_generator import run_and_kill_at_call
from tests.harness.own_system import OwnSystem
from tests.harness.sse_parser import EventStream
from tests.integration.conftest import Gateway, NewGateway
from tests.promises import Story

LEASE_S = 0.2


def stop_reason(reason: bytes) -> Break:
    return lambda events: BrokenAnswer(HEAD + b"".join(events).replace(b'"end_turn"', b'"%b"' % reason))


@contextmanager
def unreachable_server() -> Iterator[str]:
    """The URL of a port that drops connections, as a firewall does: its backlog is full."""
    with closing(socket.socket()) as listening, closing(socket.socket()) as first, closing(socket.socket()) as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.rule("F20")
async def test_a_model_that_accepts_no_connection_fails_the_turn_after_the_connect_timeouts(own: OwnSystem) -> None:
    with unreachable_server() as url:
        async with own.running_generator(claude_url=url, connect_timeout_s=0.2, call_tries_max=2, unreachable_wait_s=0):
            turn = await own.answer("words=9")
    assert (failure_code(turn), turn.attempt) == ("backend_unreachable", 1)


@pytest.mark.rule("F20")
async def test_retries_of_an_overloaded_model_end_at_the_deadline_of_the_turn(own: OwnSystem) -> None:
    async with own.running_generator(call_tries_max=9999, call_wait_max_s=0.05, deadline_s=1.5):
        turn = await own.answer("words=9 fault=529")
    assert (failure_code(turn), turn.attempt, turn.text) == ("deadline_exceeded", 1, "")
    assert await own.calls() > 2


@pytest.mark.rule("F20")
async def test_a_reader_gets_heartbeats_while_a_generator_waits_to_retry(
    own: OwnSystem, new_gateway: NewGateway, tenant: Tenant
) -> None:
    gateway = await new_gateway(own.server.url, heartbeat_s=0.05)
    stream = EventStream()
    async with own.running_generator():
        key = await own.append_request("words=9 rate=0 fault=429x1 retry_after=1", tenant)
        async with gateway.client.stream("GET", f"/v1/turns/{key.turn}/events") as response:
            events = [event async for received in response.aiter_raw() for event in stream.feed(received)]
    assert len(stream.comments) > 5
    assert any('"delta"' in event.data for event in events)
    assert ((await own.log.read_turn(ScopedKey.whole(key))).text, await own.calls()) == (words(9), 2)


@pytest.mark.rule("F23")
async def test_an_answer_with_any_stop_reason_is_complete(own: OwnSystem) -> None:
    """Also with one that a later API may introduce. There is one call."""
    for reason in ("refusal", "of_tomorrow"):
        async with (
            faulty_claude(own.claude, stop_reason(reason.encode())) as proxy,
            own.running_generator(claude_url=proxy.url),
        ):
            turn = await own.answer("words=9 rate=0")
            await own.wait_until_acknowledged()
        assert turn.end is not None
        assert (turn.outcome, turn.end.stop_reason, turn.text, proxy.calls) == ("completed", reason, words(9), 1)


@pytest.mark.rule("R118")
async def test_a_model_that_breaks_the_rules_of_its_api_twice_is_not_called_again(own: OwnSystem) -> None:
    """Each attempt makes progress, and the valid text of both is kept."""
    async with own.running_generator():
        turn = await own.answer("words=40 rate=0 fault=garbage@3x9")
    assert (failure_code(turn), turn.attempt, turn.text) == ("backend_unreadable", 2, words(6))
    assert turn.causes == ("backend_unreadable",)
    assert await own.calls() == 2


@pytest.mark.rule("R118")
async def test_an_answer_that_cannot_be_read_from_its_first_event_on_is_requested_twice(own: OwnSystem) -> None:
    async with (
        faulty_claude(own.claude, GARBAGE, times=99) as proxy,
        own.running_generator(claude_url=proxy.url),
    ):
        turn = await own.answer("words=9 rate=0")
    assert (failure_code(turn), turn.attempt, proxy.calls) == ("backend_unreadable", 2, 2)
    assert turn.error is not None
    assert turn.error.message == "the model sent an event that cannot be read; a second time, so it is not tried again"


@pytest.mark.rule("F27")
@pytest.mark.timeout(90)
async def test_a_request_that_kills_its_generators_fails_after_attempts_max(own: OwnSystem) -> None:
    """Other turns are answered meanwhile, and the failure is counted."""
    await own.shorten_lease(LEASE_S)
    key = await own.append_request("words=9 tag=poison")
    others = []
    for number in range(1, 4):
        others.append(await own.append_request(f"words=3 rate=0 tag=x{number}"))
        assert await run_and_kill_at_call("poison", own.server.url, own.claude)
        assert len(await own.attempts(key)) == number

    def failures() -> float:
        name, labels = "tailrace_generator_failures_total", {"code": "attempts_exhausted"}
        return REGISTRY.get_sample_value(name, labels) or 0

    before = failures()
    async with own.running_generator(attempts_max=3):
        turn = await own.wait_for_end(key)
        await own.wait_until_acknowledged()
    assert (failure_code(turn), turn.attempt, failures()) == ("attempts_exhausted", 3, before + 1)
    assert {(await own.log.read_turn(ScopedKey.whole(other))).outcome for other in others} == {"completed"}


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
    entries = [stored.entry for stored in await own.log.read_entries(ScopedKey.whole(key))]
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
    interrupted = await own.log.read_turn(ScopedKey.whole(key))
    assert interrupted.worked_s >= 0.5
    calls = await own.calls()
    async with own.running_generator(deadline_s=0.5):
        turn = await own.wait_for_end(key)
        await own.wait_until_acknowledged()
    assert (failure_code(turn), turn.text) == ("deadline_exceeded", interrupted.text)
    assert await own.modes(key) == ["fresh"]
    assert await own.calls() == calls
    await own.wait_for_open_streams(0)
