"""Failover: when a backend fails, the next one of the list continues the answer.

The backend `claude` calls a simulated Claude that fails as the request says; `bedrock` calls one that does not fail.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.lib.aws._auth import _get_session

from tailrace.deploy.local import ports
from tailrace.features.failover.circuit_breaker import OPEN_S
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.nats import TurnLog
from tests.harness.cloud_endpoints import Cloud, running_cloud
from tests.harness.faulty_upstream import GARBAGE, faulty_claude
from tests.harness.generator_in_loop import failure_code, read_attempts, read_stats, words
from tests.harness.own_system import OwnSystem

BOTH = "claude, bedrock"
CONTINUED = [("claude", "fresh"), ("bedrock", "continue")]
ANSWERED = [("claude", "fresh"), ("bedrock", "fresh")]


@pytest.fixture
async def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """The simulated Claude behind an endpoint of Bedrock."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    _get_session.cache_clear()  # type: ignore[attr-defined]
    async with running_cloud(tmp_path, is_kind=True) as second:
        for name, value in second.environ.items():
            monkeypatch.setenv(name, value)
        yield second


async def attempts_of(log: TurnLog, key: TurnKey) -> list[tuple[str, str]]:
    """Returns backend and mode of each attempt."""
    return [(attempt.backend, attempt.mode) for attempt in await read_attempts(log, key)]


async def run(own: OwnSystem, line: str, **settings: Any) -> tuple[Turn, list[tuple[str, str]]]:
    """Returns the turn of a request, and its attempts."""
    async with own.running_generator(**{"backends": BOTH} | settings):
        key = await own.append_request(line)
        return await own.wait_for_end(key), await attempts_of(own.log, key)


@pytest.mark.rule("R50")
@pytest.mark.parametrize("fault", ["429", "stall"])
async def test_the_next_backend_continues_after_a_fault_within_the_answer(
    own: OwnSystem, second: Cloud, fault: str
) -> None:
    """The text is whole, and each backend is called once."""
    turn, modes = await run(own, f"words=90 rate=400 fault={fault}@40", stall_timeout_s=0.3)
    assert (turn.text, turn.outcome, turn.attempt) == (words(90), "completed", 2)
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert modes == CONTINUED
    counted = await read_stats(second.url)
    assert (await own.calls(), counted["calls"]) == (1, 1)
    assert (counted["continuations"], counted["continuations_mismatched"]) == (1, 0)


@pytest.mark.parametrize(("line", "calls"), [("fault=529", 3), ("fault=429 retry_after=3600", 1)])
async def test_the_next_backend_answers_when_the_first_one_refuses(
    own: OwnSystem, second: Cloud, line: str, calls: int
) -> None:
    """The calls of the first attempt are used up, unless it would have to wait for an hour."""
    turn, modes = await run(own, f"words=20 rate=0 {line}", call_tries_max=3)
    assert (turn.text, turn.outcome, modes) == (words(20), "completed", ANSWERED)
    assert (await own.calls(), (await read_stats(second.url))["calls"]) == (calls, 1)


@pytest.mark.rule("R118")
@pytest.mark.parametrize(("line", "outcome"), [("", "completed"), ("fault=garbage@3x9", "failed")])
async def test_the_next_backend_answers_when_the_first_one_sends_what_cannot_be_read(
    own: OwnSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, outcome: str
) -> None:
    """For example a proxy before it. If that cannot be read either, the turn ends after two calls in all."""
    async with running_cloud(tmp_path) as cloud, faulty_claude(own.claude, GARBAGE, times=99) as proxy:
        for name, value in cloud.environ.items():
            monkeypatch.setenv(name, value)
        _get_session.cache_clear()  # type: ignore[attr-defined]
        turn, modes = await run(own, f"words=20 rate=0 {line}", anthropic_base_url=proxy.url)
        calls = (proxy.calls, (await read_stats(cloud.url))["calls"])
    assert (modes, calls, turn.outcome) == (ANSWERED, (1, 1), outcome)
    assert turn.text == words(3 if line else 20)
    assert turn.error is None or turn.error.code == "backend_unreadable"


@pytest.mark.rule("R101")
async def test_a_backend_that_is_down_is_not_called_by_the_next_turn(
    own: OwnSystem, second: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first turn finds it out. The next one begins with the other backend, or fails at once without an attempt.

    The first turn of another tenant calls the backend.
    """
    monkeypatch.setattr("tailrace.features.failover.circuit_breaker.FAILING_S", 0.0)
    monkeypatch.setattr("tailrace.features.failover.circuit_breaker.TURNS_MIN", 1)
    [port] = ports.find_free(1)
    async with own.running_generator(backends=BOTH, anthropic_base_url=f"http://127.0.0.1:{port}"):
        for count, tenant, tried in (
            (3, "tenant", ANSWERED),
            (4, "tenant", [("bedrock", "fresh")]),
            (5, "other", ANSWERED),
        ):
            key = await own.append_request(f"words={count} rate=0", Tenant(tenant))
            assert (await own.wait_for_end(key)).text == words(count)
            assert await attempts_of(own.log, key) == tried
    async with own.running_generator(anthropic_base_url=f"http://127.0.0.1:{port}", unreachable_wait_s=0):
        _, turn = [await own.answer("words=3 rate=0") for _ in range(2)]
    assert turn.error is not None
    assert (turn.attempt, turn.error.code, turn.error.retry_after_s) == (0, "backend_unreachable", OPEN_S)


@pytest.mark.rule("R50")
async def test_attempts_are_limited_over_all_backends(
    own: OwnSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call stores a token, so that no attempt moves the answer forward."""
    async with running_cloud(tmp_path) as faulty:
        for name, value in faulty.environ.items():
            monkeypatch.setenv(name, value)
        _get_session.cache_clear()  # type: ignore[attr-defined]
        turn, modes = await run(own, "words=90 rate=0 fault=cut@0x9", attempts_max=4)
        calls = await own.calls() + (await read_stats(faulty.url))["calls"]
    assert (failure_code(turn), turn.attempt, calls, turn.text) == ("attempts_exhausted", 4, 4, "")
    assert [backend for backend, _ in modes] == ["claude", "bedrock"] * 2


async def test_a_model_may_have_its_own_list_of_backends(own: OwnSystem, second: Cloud) -> None:
    lists = "claude; claude-haiku-5-5 = bedrock:eu.anthropic.claude-haiku-5-5"
    async with own.running_generator(backends=lists):
        for model, backend in (("claude-haiku-5-5", "bedrock"), ("claude-sonnet-5-5", "claude")):
            key = await own.append_request("words=3 rate=0", model=model)
            assert (await own.wait_for_end(key)).text == words(3)
            assert await attempts_of(own.log, key) == [(backend, "fresh")]
    assert [model_request.body["model"] for model_request in second.received] == ["eu.anthropic.claude-haiku-5-5"]
