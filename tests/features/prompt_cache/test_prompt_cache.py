"""The model's prompt cache: usage in the stream, in the record, in /v1/usage and in metrics, and after a takeover."""

from typing import Any

import pytest

from tailrace.proto.ids import new_id
from tailrace.proto.usage import CallUsage
from tests.harness.displayed_text import data
from tests.harness.own_system import OwnSystem
from tests.harness.readers import read
from tests.harness.system import System
from tests.harness.turn_builder import MODEL
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway
from tests.promises import ReaderConnection

WORDS = 2000
USAGE = ("cache_creation_input_tokens", "cache_read_input_tokens")


def long_system() -> str:
    """Returns a new system prompt."""
    return f"{new_id()} " + "word " * (WORDS - 1)


async def post_and_read(gateway: Gateway, **body: Any) -> tuple[ReaderConnection, dict[str, Any]]:
    posted = await gateway.client.post("/v1/turns", json={"message": "#sim words=2 rate=0"} | body)
    assert posted.status_code == 202, posted.text
    turn = posted.json()["turn"]
    seen = await read(gateway.client, turn)
    return seen, (await gateway.client.get(f"/v1/turns/{turn}")).json()


def events_of(connected: ReaderConnection) -> list[dict[str, Any]]:
    return data(b"".join(frame.sent for frame in connected.frames))


def cached_tokens(turn: dict[str, Any]) -> tuple[int, int]:
    written, read_ = (turn["usage"].get(name, 0) for name in USAGE)
    return written, read_


@pytest.mark.parametrize("cache", ["auto", "1h"])
async def test_the_next_turn_reads_what_the_first_has_cached(gateway: Gateway, cache: str) -> None:
    """It costs less. The stream reports the usage before the first word, and /v1/usage has the sum."""
    system = long_system()
    seen, first = await post_and_read(gateway, system=system, cache=cache)
    reported = [event for event in events_of(seen) if event["type"] == "usage"]
    written, read_ = cached_tokens(first)
    assert (written > WORDS, read_) == (True, 0)
    assert [event["cache_creation_input_tokens"] for event in reported] == [written]
    assert [event["type"] for event in events_of(seen)][:3] == ["start", "usage", "delta"]
    _, second = await post_and_read(gateway, system=system, cache=cache, session=first["session"])
    assert cached_tokens(second)[1] == written
    assert second["cost_usd"] < first["cost_usd"] / 5
    (total,) = (await gateway.client.get("/v1/usage?by=model")).json()["data"]
    assert cached_tokens(total) == tuple(map(sum, zip(*map(cached_tokens, (first, second)), strict=True)))


async def test_the_operator_can_enable_the_cache_for_all_turns(
    system: System, generator: object, persistence: object, new_gateway: NewGateway
) -> None:
    caching = await new_gateway(system.nats_url, cache="5m")
    assert cached_tokens((await post_and_read(caching, system=long_system()))[1])[0] > WORDS
    assert cached_tokens((await post_and_read(caching, system=long_system(), cache="off"))[1]) == (0, 0)
    refused = await caching.client.post("/v1/turns", json={"message": "Hi", "cache": "2h"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "request_invalid")


@pytest.mark.rule("R61")
async def test_a_takeover_reads_what_the_first_call_has_cached(own: OwnSystem) -> None:
    """The second call pays for little more than the partial answer."""
    async with own.running_generator():
        key = await own.append_request("words=9 rate=0 fault=cut@4x1", system=long_system(), cache="5m")
        turn = await own.wait_for_end(key)
    assert await own.modes(key) == ["fresh", "continue"]
    first, second = [call for call in turn.calls if call != CallUsage()]
    assert (first.cache_creation_input_tokens > WORDS, first.cache_read_input_tokens) == (True, 0)
    assert second.cache_read_input_tokens == first.cache_creation_input_tokens
    assert second.cache_creation_input_tokens == 0
    assert second.input_tokens < 100


async def test_metrics_count_cached_tokens(own: OwnSystem) -> None:
    import prometheus_client

    def counted_tokens() -> list[float]:
        name = "tailrace_generator_usage_tokens_total"
        return [
            prometheus_client.REGISTRY.get_sample_value(name, {"kind": kind, "model": MODEL}) or 0 for kind in USAGE
        ]

    before = counted_tokens()
    async with own.running_generator():
        turn = await own.answer("words=1 rate=0", system=long_system(), cache="5m")
        again = await own.answer("words=1 rate=0", system=turn.request.system, cache="5m")  # type: ignore[union-attr]
        usages = (turn.usage, again.usage)
        reported = [sum(getattr(usage, kind) for usage in usages) for kind in USAGE]
        # They are counted after the end is stored.
        await until(lambda: [after - was for after, was in zip(counted_tokens(), before, strict=True)] == reported)
    assert all(reported)
