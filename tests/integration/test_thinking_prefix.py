"""Thinking of earlier answers at generators: which of it is sent, and a model's API that refuses it nevertheless."""

from typing import Any

import httpx2
import msgspec
import pytest
from prometheus_client import REGISTRY

from tailrace.proto.chain import START
from tailrace.proto.entries import Message, StoredThinking
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.thinking_prefix import as_stored, find_prefixes
from tests.harness.faulty_upstream import BrokenAnswer, faulty_claude
from tests.harness.generator_in_loop import wait_for_end
from tests.harness.own_system import OwnSystem
from tests.harness.turn_builder import request

pytestmark = pytest.mark.rule("R140")

SAID = {"type": "text", "text": "Hello."}
THINKING = {"type": "redacted_thinking", "data": "aGVsbG8="}
MISMATCH = "The block is bound to a different conversation. Remove the block."
REFUSED = f"messages.1.content.0: Invalid `data` in `redacted_thinking` block. {MISMATCH}"
HISTORY = [Message("user", "Hi."), Message("assistant", [THINKING, SAID]), Message("user", "#sim words=2 rate=0")]
(STORED,) = (as_stored(one) for one in find_prefixes(None, None, HISTORY).thinking)


def refuse(message: str) -> bytes:
    body = msgspec.json.encode({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
    head = (
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    )
    return head % len(body) + body


async def accept_thinking(claude_url: str) -> None:
    """Makes the simulated Claude accept the thinking, which it has not written."""
    async with httpx2.AsyncClient(base_url=claude_url) as claude:
        await claude.post("/_sim/settings", json={"known": [THINKING["data"]]})


async def run_turn(log: TurnLog, *, thinking: list[StoredThinking], options: dict[str, Any] | None = None) -> Turn:
    key = TurnKey(Tenant("tenant"), TurnId(new_id()))
    await log.append(key, START, request(messages=HISTORY, history=2, thinking=thinking, options=options))
    return await wait_for_end(log, key)


def refused_calls() -> float:
    return REGISTRY.get_sample_value("tailrace_generator_thinking_refused_total") or 0.0


async def test_thinking_behind_another_prompt_is_left_out(own: OwnSystem) -> None:
    await accept_thinking(own.claude)
    async with own.running_generator():
        same = await run_turn(own.log, thinking=[STORED])
        other = await run_turn(own.log, thinking=[msgspec.structs.replace(STORED, prefix="0")])
        of_older_version = await run_turn(own.log, thinking=[StoredThinking(STORED.id)])
    sent = [one.prefixes[0].thinking for one in (same, other, of_older_version)]
    assert sent == [STORED.id, "", ""]
    assert [one.outcome for one in (same, other, of_older_version)] == ["completed"] * 3
    assert same.end is not None
    assert same.end.prefixes == same.prefixes


@pytest.mark.parametrize("thinking", [[STORED], []], ids=["stored", "of the client"])
async def test_a_call_whose_thinking_was_refused_is_repeated_once_without_it(
    own: OwnSystem, thinking: list[StoredThinking]
) -> None:
    """Also the client's: it does not know what a generator had added to the prompt."""
    before = refused_calls()
    async with (
        faulty_claude(own.claude, lambda _: BrokenAnswer(refuse(REFUSED))) as between,
        own.running_generator(claude_url=between.url),
    ):
        turn = await run_turn(own.log, thinking=thinking)
    assert (turn.outcome, turn.attempt, between.calls, refused_calls() - before) == ("completed", 1, 2, 1)
    assert turn.prefixes[0].thinking == ""


@pytest.mark.parametrize(
    ("message", "behavior"),
    [
        # The client has asked for the refusal.
        (REFUSED, "error"),
        # A message of the API that quotes the client.
        (f"messages.0: {REFUSED} is no role", "drop_block"),
        ("messages.1.content.0: Invalid `data` in `redacted_thinking` block", "drop_block"),
    ],
)
async def test_another_refusal_is_not_repeated(own: OwnSystem, message: str, behavior: str) -> None:
    options = {"thinking": {"type": "adaptive", "block_binding": {"prefix_mismatch_behavior": behavior}}}
    async with (
        faulty_claude(own.claude, lambda _: BrokenAnswer(refuse(message))) as between,
        own.running_generator(claude_url=between.url),
    ):
        turn = await run_turn(own.log, thinking=[STORED], options=options)
    assert (turn.outcome, between.calls) == ("failed", 1)
    assert turn.end is not None
    assert turn.end.error is not None
    assert (turn.end.error.code, turn.end.error.message) == ("backend_refused_request", message)


async def test_a_second_refusal_ends_the_turn(own: OwnSystem) -> None:
    async with (
        faulty_claude(own.claude, lambda _: BrokenAnswer(refuse(REFUSED)), times=9) as between,
        own.running_generator(claude_url=between.url),
    ):
        turn = await run_turn(own.log, thinking=[STORED])
    assert (turn.outcome, between.calls) == ("failed", 2)
