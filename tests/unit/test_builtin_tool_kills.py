"""OpenAI's items of built-in tools after kills of the generator: each search and each run of code once."""

import json
from typing import Any

import pytest

from tailrace.features.gateway import DIALECTS
from tailrace.proto.entries import Attempt, StoredEntry
from tailrace.proto.records import record_from_fold
from tailrace.protocols.openai.responses_stream import response_of
from tests.harness.sse_parser import parse
from tests.harness.turn_builder import KEY
from tests.unit.test_server_tool_kills import TEXT, KillableGenerator, run_turn

SEEDS = 100


def run(directive: str, seed: int, kills: int) -> KillableGenerator:
    generator = run_turn(directive, seed, kills=kills)
    generator.log.end()
    return generator


def shown(stored: list[StoredEntry]) -> list[dict[str, Any]]:
    """Returns the items of the stream that a client has read which has followed every restart."""
    dialect = DIALECTS["openai-responses"]
    state, data = dialect.start(KEY), b""
    for one in stored:
        frame, state = dialect.render(state, one)
        data = b"" if frame.is_break else data + frame.data
    events = [json.loads(event.data) for event in parse(data)]
    assert events[-1]["type"] == "response.completed"
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == events[-1]["response"]["output"]
    return done


def readable(items: list[dict[str, Any]]) -> list[Any]:
    """Returns the items without ids, reasoning, and calls whose result was lost with a generator.

    A message that a lost call has divided is one.
    """
    found: list[Any] = []
    for item in items:
        if item["type"] == "reasoning" or item["status"] == "failed":
            continue
        if item["type"] != "message":
            found.append({**item, "id": "", "container_id": ""})
        elif found and isinstance(found[-1], str):
            found[-1] += item["content"][0]["text"]
        else:
            found.append(item["content"][0]["text"])
    return found


@pytest.mark.rule("R119")
@pytest.mark.timeout(240)
@pytest.mark.parametrize("thinking", ["", " thinking=3"], ids=["text", "thinking"])
def test_a_killed_generator_repeats_no_search_and_no_code(thinking: str) -> None:
    """100 seeds, up to eight kills each, at any event: the items are those of an answer without a kill."""
    directive = f"server=web_search*2,bash_code_execution,code_execution,mcp{thinking}"
    whole = readable(shown(run(directive, 0, 0).log.stored))
    assert "".join(one for one in whole if isinstance(one, str)) == TEXT
    killed = failed = 0
    for seed in range(SEEDS):
        generator = run(directive, seed, 8)
        killed += 8 - generator.kills_left
        items = shown(generator.log.stored)
        failed += sum(item.get("status") == "failed" for item in items)
        assert generator.repeated == [], seed
        assert readable(items) == whole, seed
        assert readable(response_of(record_from_fold(KEY, generator.log.turn))["output"]) == whole, seed
        modes = {stored.entry.mode for stored in generator.log.stored if isinstance(stored.entry, Attempt)}
        assert thinking or "restart" not in modes, seed
    assert killed > 4 * SEEDS
    # Some kills came between a call and its result: that call is shown as failed.
    assert failed > 10
