"""Answers with server tools and pauses, whose generator is killed at any event: no stored result is made twice.

The plan, the calls and the mapping of events are the product's; the log is in memory. The model is the simulated
Claude's pure answer function, behind the checks that the real API makes of a request.
"""

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from starlette.datastructures import Headers

from tailrace.deploy.simulated_claude import event as simulated
from tailrace.deploy.simulated_claude.reply import parse_message, reply
from tailrace.deploy.simulated_claude.request import decode
from tailrace.gateway.turns.request_body import new_messages
from tailrace.generators.backends import Call
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import ModelEvent, read_event
from tailrace.generators.continuation import prepare_call
from tailrace.generators.half_calls import without_half_calls
from tailrace.generators.pauses import hide_pause
from tailrace.generators.plan import AppendEvents, Complete, MakeAttempt, plan
from tailrace.proto import events
from tailrace.proto.entries import Attempt, Block, Event, Message, Mode
from tailrace.proto.fold import Turn, content
from tailrace.protocols.anthropic.request import MessagesRequest, build_turn
from tests.harness.turn_builder import Handwritten, attempt

WORDS = 24
TOOLS: list[dict[str, Any]] = [{"type": "web_search_20250305", "name": "web_search"}]
TEXT = " ".join(f"w{number:06d}" for number in range(WORDS))


class KillableGenerator:
    """Runs a turn as a generator does. Each of its appends may be its last one: another generator takes over."""

    def __init__(self, log: Handwritten, chance: random.Random, kills: int, at: float) -> None:
        """It is killed at most `kills` times, at each event with the probability `at`."""
        self.log = log
        self.kills_left = kills
        self.executed = Counter[str]()
        """How often the API has executed each call: by the id of the call, with the results stored or not."""
        self.repeated = list[str]()
        """The calls that were executed after their results were stored."""
        self.calls: list[Call] = []
        self._chance = chance
        self._at = at

    def run(self) -> None:
        """Runs the turn until it is complete."""
        while not isinstance(action := plan(self.log.turn, 5), Complete):
            match action:
                case AppendEvents(closing):
                    self._append(closing)
                case MakeAttempt(mode=mode, reason=reason):
                    self.log.store(msgspec.structs.replace(attempt(self.log.chain, mode), reason=reason))
                    self._answer(mode)
                case _:
                    raise AssertionError(action)

    def _answer(self, mode: Mode) -> None:
        turn = self.log.turn
        assert turn.request is not None
        call, mapper = prepare_call(turn, mode)
        self.calls.append(call)
        order, mapped = EventOrder(), list[ModelEvent]()
        sink = mapper.wrap(mapped.append) if mapper is not None else mapped.append
        for data in stream(call, len(self.calls)):
            event = read_event(data)
            if event is None:
                continue
            match event.event:
                case events.BlockStart(_, {"tool_use_id": str(name)}):
                    self.executed[name] += 1
                    if any(block.start.get("tool_use_id") == name for block in self.log.turn.blocks):
                        self.repeated.append(name)
            for one in order.accept(event):
                sink(hide_pause(one, turn))
            if not self._append(mapped):
                return
            mapped.clear()

    def _append(self, some: list[ModelEvent]) -> bool:
        """Stores the events. Returns False if the generator was killed meanwhile."""
        for one in some:
            prev, number = self.log.chain.last, self.log.chain.attempt
            self.log.store(Event(prev=prev, attempt=number, event=one.raw, is_hidden=one.is_hidden))
            if self.kills_left and self._chance.random() < self._at:
                self.kills_left -= 1
                return False
        return True


def stream(call: Call, number: int) -> list[bytes]:
    """Returns the data of the model's events at its call `number`, which has ids of its own.

    Raises Refusal for a call that the API would refuse.
    """
    body = {name: field for name, field in msgspec.to_builtins(call).items() if field is not None}
    body |= body.pop("options", {})
    parsed = parse_message(decode(msgspec.json.encode(body)))
    frames = (frame.data.partition(b"data: ")[2].strip() for frame in simulated.frames(reply(parsed, number)))
    return [data for data in frames if data]


def run_turn(directive: str, seed: int, *, kills: int, **fields: Any) -> KillableGenerator:
    log = Handwritten()
    question = Message("user", f"#sim words={WORDS} rate=0 {directive}")
    given = {"on_pause": "continue", "tools": TOOLS, "max_tokens": 4000, **fields}
    log.store_request(messages=[question], **given)
    generator = KillableGenerator(log, random.Random(seed), kills, at=0.05)
    generator.run()
    return generator


def send_back(turn: Turn, model: str) -> None:
    """Sends the whole answer back, as a client of Anthropic's API does. Raises Refusal if the API would refuse it."""
    assert turn.request is not None
    answer = {"role": "assistant", "content": [content(block) for block in turn.blocks]}
    messages = [*turn.request.messages, answer, {"role": "user", "content": "And then?"}]
    body = {"model": model, "max_tokens": 99, "tools": TOOLS, "messages": messages}
    fields: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(body))
    turn_of_client = build_turn(msgspec.convert(fields, MessagesRequest), fields, Headers())
    decode(msgspec.json.encode(body | {"messages": new_messages(turn_of_client)}))


def readable(blocks: list[Block]) -> list[dict[str, Any]]:
    """Returns the blocks without ids and thinking, with joined texts: a continuation may end a text block early."""
    found: list[dict[str, Any]] = []
    for block in map(content, without_half_calls(blocks)):
        kept = {name: value for name, value in block.items() if name not in ("id", "tool_use_id", "citations")}
        if block["type"] == "text" and found and found[-1]["type"] == "text":
            found[-1]["text"] += block["text"]
        elif "thinking" not in block["type"]:
            found.append(kept)
    return found


@pytest.mark.rule("R119")
@pytest.mark.parametrize("model", ["claude-sonnet-5-5", "claude-sonnet-4-5"], ids=["prompt", "prefill"])
@pytest.mark.parametrize(
    "directive",
    [
        "server=web_search,code_execution,mcp",
        "server=web_search,code_execution,mcp thinking=3",
        "server=mcp*3 pauses=3",
    ],
)
def test_no_server_tool_with_a_stored_result_runs_twice(directive: str, model: str) -> None:
    """60 seeds, up to eight kills each, at any event of an answer with three tools."""
    whole = readable(list(run_turn(directive, 0, kills=0, model=model).log.turn.blocks))
    killed = 0
    for seed in range(60):
        generator = run_turn(directive, seed, kills=8, model=model)
        turn = generator.log.turn
        killed += 8 - generator.kills_left
        assert generator.repeated == [], seed
        assert turn.text == TEXT, seed
        assert readable(list(turn.blocks)) == whole, seed
        assert all(block.is_closed for block in turn.blocks), seed
        # Each call has its result, if only an error: the API accepts the answer when a client sends it back.
        calls = [block.start["id"] for block in turn.blocks if block.type in ("server_tool_use", "mcp_tool_use")]
        results = [block.start["tool_use_id"] for block in turn.blocks if "tool_use_id" in block.start]
        assert sorted(calls) == sorted(results), seed
        modes = {stored.entry.mode for stored in generator.log.stored if isinstance(stored.entry, Attempt)}
        # Half a thought before the first result is not kept.
        assert "thinking" in directive or "restart" not in modes, seed
        send_back(turn, model)
    assert killed > 200


@pytest.mark.rule("R117")
@pytest.mark.parametrize("on_interrupt", ["continue", "restart", "fail"])
def test_three_pauses_are_one_answer(on_interrupt: str) -> None:
    """Without a kill, whatever `on_interrupt` says: four calls, and each tool ran once."""
    generator = run_turn("server=web_search*3 pauses=3", 0, kills=0, on_interrupt=on_interrupt)
    turn = generator.log.turn
    assert (turn.text, turn.stop.stop_reason, turn.attempt) == (TEXT, "end_turn", 4)
    assert [call.messages[-1].role for call in generator.calls] == ["user", "assistant", "assistant", "assistant"]
    assert sorted(generator.executed.values()) == [1, 1, 1]
    assert turn.usage.output_tokens >= WORDS


@pytest.mark.rule("R119")
@pytest.mark.parametrize("forced", [{"type": "any"}, {"type": "tool", "name": "web_search"}], ids=["any", "tool"])
def test_a_forced_call_is_not_forced_again(forced: dict[str, str]) -> None:
    """Also after a pause. A call whose result was lost with its generator is forced again."""
    choice = forced | {"disable_parallel_tool_use": True}
    free = {"type": "auto", "disable_parallel_tool_use": True}
    repeated = 0
    for seed in range(20):
        fields: dict[str, Any] = {"model": "claude-haiku-5-5", "options": {"tool_choice": choice}}
        generator = run_turn("server=web_search*2 pauses=1", seed, kills=4, **fields)
        assert generator.log.turn.text == TEXT
        for call in generator.calls:
            has_called = "web_search_tool_result" in str(call.messages) or "srvtoolu" in str(call.messages)
            assert call.options == {"tool_choice": free if has_called else choice}, seed
            repeated += not has_called
    assert repeated > 20
