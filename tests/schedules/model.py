"""The simulated model: what it answers, as a function of the call, and a Backend that streams it and may break off."""

import asyncio
from collections.abc import AsyncGenerator
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from tailrace.generators.backends import Call
from tailrace.generators.backends.model_event import ModelEvent, Put, put_each, read_event
from tailrace.proto import events
from tailrace.proto.entries import Request
from tailrace.proto.errors import BackendError
from tailrace.proto.usage import CallUsage
from tests.harness.turn_builder import MODEL, request
from tests.schedules.process import Process
from tests.schedules.server import SimulatedServer

FORMAT = {"output_config": {"format": {"type": "json_schema", "schema": {"type": "array"}}}}
MISFIT = "it is no array"
# The codes of a stream that breaks off. The last one is final for a turn without any answer yet.
BREAKS = ("backend_unreachable", "backend_overloaded", "backend_broken", "backend_refused_request")
# The longest pause between two events of the model.
EVENT_S_MAX = 0.002


class Part(NamedTuple):
    """One content block of an answer, in the pieces of its deltas."""

    type: str
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Script(NamedTuple):
    """The right answer; `wrong` is the model's first answer where it has to fit a schema."""

    blocks: tuple[Part, ...]
    wrong: tuple[Part, ...] = ()

    def answer(self, *, is_corrected: bool) -> tuple[Part, ...]:
        return self.wrong if self.wrong and not is_corrected else self.blocks


def text_of(blocks: tuple[Part, ...]) -> str:
    return "".join(block.text for block in blocks if block.type == "text")


WORDS = ("w0", " w1", " w2", " w3")
LONG = tuple(f" l{number}" for number in range(40))
SCRIPTS = (
    Script((Part("text", WORDS),)),
    Script((Part("thinking", ("Hm", "m")), Part("text", WORDS[:3]))),
    Script((Part("text", WORDS[:2]), Part("tool_use", ('{"a"', ":1}")))),
    Script((Part("text", LONG),)),
    Script((Part("text", ("[0", ",1", "]")),), wrong=(Part("text", ("Here", " it is")),)),
)
DELTAS: dict[str, Any] = {"text": events.TextDelta, "thinking": events.ThinkingDelta, "tool_use": events.InputJsonDelta}


@lru_cache
def question(script: Script, on_interrupt: str) -> Request:
    return request(on_interrupt=on_interrupt, options=FORMAT if script.wrong else None)


async def find_mismatch(_judge: object, _schema: object, text: str, _tenant: object) -> str | None:
    """Replaces SchemaChecker.find_mismatch, which starts a process."""
    return None if text.startswith("[") else MISFIT


def answer_to(script: Script, call: Call) -> tuple[bytes, ...]:
    """Returns the events with which the model answers `call`: the whole answer, or the rest of what it has said."""
    partial = [
        message for message in call.messages if message.role == "assistant" and isinstance(message.content, list)
    ]
    answer = script.answer(is_corrected=any(MISFIT in str(message.content) for message in call.messages))
    if not partial:
        return _events(answer)
    blocks: list[dict[str, Any]] = partial[-1].content  # type: ignore[assignment]
    text = "".join(block["text"] for block in blocks if block["type"] == "text")
    tools = sum(block["type"] == "tool_use" for block in blocks)
    rest = list[Part]()
    for part in answer:
        if part.type == "text":
            left = part.text[len(text) :]
            text = text[len(part.text) :]
            if left:
                # Its deltas are cut at other places than the first time.
                rest.append(Part("text", (left[:1], left[1:]) if len(left) > 1 else (left,)))
        elif part.type == "thinking":
            rest.append(part)
        elif tools:
            tools -= 1
        else:
            rest.append(part)
    return _events(tuple(rest))


@lru_cache
def _events(blocks: tuple[Part, ...]) -> tuple[bytes, ...]:
    head = events.MessageHead("msg_1", MODEL, CallUsage(input_tokens=10))
    answer: list[events.Event] = [events.MessageStart(head)]
    for index, block in enumerate(blocks):
        answer.append(events.BlockStart(index, {"type": block.type}))
        answer += [events.BlockDelta(index, DELTAS[block.type](piece)) for piece in block.pieces]
        answer.append(events.BlockStop(index))
    why = "tool_use" if blocks and blocks[-1].type == "tool_use" else "end_turn"
    answer.append(events.MessageDelta(events.StopReason(why), events.UsageSoFar(output_tokens=len(answer))))
    return tuple(msgspec.json.encode(one) for one in answer)


class SimulatedBackend:
    """A Backend of one generator process."""

    provider = "anthropic"

    def __init__(self, server: SimulatedServer, process: Process, script: Script) -> None:
        self._server = server
        self._process = process
        self._script = script
        self.calls = 0

    def model_id(self, model: str) -> str:
        return model

    async def stream(self, call: Call, put: Put) -> None:
        await put_each(put, self._answer(call))

    async def _answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        self._process.require_alive()
        world, faults, is_faultless = self._server.world, self._server.faults, self._server.is_faultless
        self.calls += 1
        world.record(self._process.name, f"calls the model, with {len(call.messages)} messages")
        if not is_faultless and self.calls in faults.breaks:
            self._server.happened.append("broken generator")
            raise UnexpectedError
        answer = answer_to(self._script, call)
        broken = None
        if not is_faultless and world.chance() < faults.broken:
            answer = answer[: world.below(len(answer))]
            broken = BackendError(BREAKS[world.below(len(BREAKS))], "the model's stream broke off")
        for event in answer:
            if world.chance() < 0.5:
                await world.wait(world.chance() * (EVENT_S_MAX + faults.slow_s))
            model_event = read_event(event)
            assert model_event is not None
            yield model_event
        if broken is not None:
            raise broken

    async def close(self) -> None:
        await asyncio.sleep(0)


class UnexpectedError(Exception):
    """An error that no code expects: the generator gives the turn back and lives on."""
