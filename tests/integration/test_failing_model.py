"""A model that does not answer, or not yet (FAULTS F20, F21, F23, F27): how often it is asked, how long, and by whom.

The proxy in `tests/harness/faulty_upstream.py` adds failures that the simulated Claude does not have.
"""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, TurnLog
from tests.harness.faulty_upstream import HEAD, Break, Broken, breaking
from tests.harness.generator_in_loop import ask, attempts, ended, is_acknowledged, shorten_lease, stats, words, working
from tests.harness.killable_generator import killed_by
from tests.harness.sse_parser import EventStream
from tests.harness.until import until
from tests.integration.conftest import NewGateway

LEASE_S = 0.2


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


def status(number: int) -> Break:
    body = b"<html>Please try again later</html>"
    head = b"HTTP/1.1 %d No\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    return lambda _: Broken(head % (number, len(body)) + body)


def stop_reason(reason: bytes) -> Break:
    return lambda events: Broken(HEAD + b"".join(events).replace(b'"end_turn"', b'"%b"' % reason))


@contextmanager
def unreachable() -> Iterator[str]:
    """The address of a model that no connection gets through to: as a firewall has it that drops what comes."""
    with closing(socket.socket()) as listening, closing(socket.socket()) as first, closing(socket.socket()) as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.rule("F20")
@pytest.mark.parametrize("number", [408, 502, 503, 504])
async def test_a_server_that_cannot_just_now_is_asked_again(
    own_server: NatsServer, own_log: TurnLog, claude: str, number: int
) -> None:
    """Two refusals and an answer are one attempt: whatever the proxies before a model say."""
    async with (
        breaking(claude, status(number), times=2) as between,
        working(own_server.url, between.url, stall_timeout_s=9),
    ):
        key = await ask(own_log, "words=9 rate=0")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt, between.calls) == (words(9), "completed", 1, 3)


@pytest.mark.rule("F20")
async def test_a_model_that_no_connection_gets_through_to_fails_the_turn_in_bounded_time(
    own_server: NatsServer, own_log: TurnLog
) -> None:
    """Nothing refuses and nothing answers: `connect_timeout_s` for each call, and the reason in the end."""
    with unreachable() as url:
        async with working(own_server.url, url, connect_timeout_s=0.2, call_tries_max=2):
            turn = await ended(own_log, await ask(own_log, "words=9"))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.attempt) == ("failed", "backend_unreachable", 1)


@pytest.mark.rule("F20")
async def test_a_model_that_is_overloaded_for_ever_is_waited_for_no_longer_than_the_turns_deadline(
    own_server: NatsServer, own_log: TurnLog, claude: str
) -> None:
    """However many calls there may be: the budget of a turn is its time."""
    async with working(own_server.url, claude, call_tries_max=9999, call_wait_max_s=0.05, deadline_s=1.5):
        turn = await ended(own_log, await ask(own_log, "words=9 fault=529"))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.attempt, turn.text) == ("failed", "deadline_exceeded", 1, "")
    assert (await stats(claude))["calls"] > 2


@pytest.mark.rule("F20")
async def test_who_is_told_to_come_back_in_an_hour_hears_so_at_once(
    own_server: NatsServer, own_log: TurnLog, claude: str
) -> None:
    """No wait within reason: one call, and the model's own wish in the end."""
    async with working(own_server.url, claude):
        turn = await ended(own_log, await ask(own_log, "words=9 fault=429 retry_after=3600"))
    assert turn.error is not None
    assert (turn.error.code, turn.error.retry_after_s) == ("backend_rate_limited", 3600)
    assert (await stats(claude))["calls"] == 1


@pytest.mark.rule("F20")
async def test_while_a_model_is_waited_for_its_reader_is_told_that_all_is_well(
    own_server: NatsServer, own_log: TurnLog, claude: str, new_gateway: NewGateway, tenant: Tenant
) -> None:
    """A `retry-after` is a silence that a proxy would not bear: heartbeats fill it, on the one connection."""
    gateway = await new_gateway(own_server.url, heartbeat_s=0.05)
    stream = EventStream()
    async with working(own_server.url, claude):
        key = await ask(own_log, "words=9 rate=0 fault=429x1 retry_after=1", tenant)
        async with gateway.client.stream("GET", f"/v1/turns/{key.turn}/events") as response:
            events = [event async for received in response.aiter_raw() for event in stream.feed(received)]
    assert len(stream.comments) > 5
    assert sum('"delta"' in event.data for event in events) > 0
    assert ((await own_log.turn(key)).text, (await stats(claude))["calls"]) == (words(9), 2)


@pytest.mark.rule("F23")
@pytest.mark.parametrize("reason", ["refusal", "model_context_window_exceeded", "max_tokens", "of_tomorrow"])
async def test_an_answer_that_a_model_has_ended_is_not_asked_for_again(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str, reason: str
) -> None:
    """Whatever the reason, also one that nobody knows yet: it is told, and there is one call."""
    async with (
        breaking(claude, stop_reason(reason.encode())) as between,
        working(own_server.url, between.url, stall_timeout_s=9),
    ):
        turn = await ended(own_log, await ask(own_log, "words=9 rate=0"))
        await until(lambda: is_acknowledged(own_connection))
    assert turn.end is not None
    assert (turn.outcome, turn.end.stop_reason, turn.text, between.calls) == ("completed", reason, words(9), 1)


@pytest.mark.rule("F27")
@pytest.mark.timeout(90)
async def test_a_question_that_kills_its_generators_ends_and_the_others_are_answered(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str
) -> None:
    """Three generators die of it, and no fourth: it fails, which is counted; what is asked beside it is answered."""
    await shorten_lease(own_connection, LEASE_S)
    key = await ask(own_log, "words=9 tag=poison")
    for number in range(1, 4):
        other = await ask(own_log, f"words=3 rate=0 tag=x{number}")
        assert await killed_by("poison", own_server.url, claude)
        assert (await own_log.turn(other)).outcome == "completed"
        assert len(await attempts(own_log, key)) == number
    name, labels = "tailrace_generator_failures_total", {"code": "attempts_exhausted"}
    before = REGISTRY.get_sample_value(name, labels) or 0
    async with working(own_server.url, claude, attempts_max=3):
        turn = await ended(own_log, key)
        await until(lambda: is_acknowledged(own_connection))
    assert turn.error is not None
    assert (turn.outcome, turn.error.code, turn.attempt) == ("failed", "attempts_exhausted", 3)
    assert (REGISTRY.get_sample_value(name, labels) or 0) - before == 1
