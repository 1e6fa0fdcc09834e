"""StandIn: the simulated Claude as a backend in this process. It enforces all rules of requests."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, NamedTuple

import msgspec

from tailrace.deploy.simulated_claude.cache import Cache
from tailrace.deploy.simulated_claude.event import frames
from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.deploy.simulated_claude.reply import parse_message, reply
from tailrace.deploy.simulated_claude.request import decode, require_max_tokens
from tailrace.deploy.simulated_claude.rules import refuse_request
from tailrace.deploy.simulated_claude.settings import Settings
from tailrace.deploy.simulated_claude.thinking import Signer, find_open, read_places
from tailrace.generators.backends import Call
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.generators.backends.api_errors import api_error, code_for
from tailrace.generators.backends.event_order import EventOrder
from tailrace.generators.backends.model_event import Put, read_event
from tailrace.proto import events
from tailrace.proto.errors import BackendError

# The version that the SDK sends by default.
VERSION = "2026-10-21"
DATA = b"data: "
CONTAINER = "container_sim0x" + "0" * 20

# So many turns of the loop later, further events of a model call are stored.
LOOPS_UNTIL_STORED = 10

Json = dict[str, Any]
Special = Callable[[Json], list[Json]]
"""Returns the blocks of an answer to a request."""


class Killed(BaseException):
    """The generator dies: nothing else of it runs."""


class Written(NamedTuple):
    """Where a signature was written."""

    turn: str
    request: bytes


class StandIn:
    """A Backend. `special`: the answer to the next first call of a turn, in place of the directed one."""

    provider = "anthropic"

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []
        """The turns of refused requests, and the messages of the refusals."""
        self.written: dict[str, Written] = {}
        """Where each signature was written."""
        self.special: Special | None = None
        self.at_delta: tuple[int, Callable[[], Awaitable[None]]] | None = None
        """After so many deltas of the next call: what happens then."""
        self._settings = Settings(known={CONTAINER})
        self._cache = Cache()
        self._calls = Counter[str]()
        self._specials = 0

    def model_id(self, model: str) -> str:
        return model

    async def stream(self, call: Call, put: Put) -> None:
        body = b"".join(await encode_body(call, model=call.model, stream=True))
        try:
            lines = self._answer(body, ",".join(call.betas or ()), call.api_version or VERSION)
        except Refusal as refused:
            self.refused.append((call.turn, refused.message))
            raise api_error(code_for(refused.status, refused.type), refused.message) from refused
        deltas, order, due, is_complete = 0, EventOrder(), self.at_delta, False
        self.at_delta = None
        for line in lines:
            event = read_event(line)
            if event is None:
                continue
            for one in order.accept(event):
                match one.event:
                    case events.BlockDelta(_, events.SignatureDelta(signature)):
                        self.written.setdefault(signature, Written(call.turn, body))
                if (wait := put(one)) is not None:
                    await wait()
            is_complete = event.kind == "message_stop"
            deltas += event.kind == "content_block_delta"
            if due is not None and deltas >= due[0]:
                # The events so far are stored, or some of them.
                for _ in range(LOOPS_UNTIL_STORED * (deltas % 4)):
                    await asyncio.sleep(0)
                await due[1]()
                due = None
        if not is_complete:
            raise BackendError("backend_broken", "the answer was cut")

    def _answer(self, body: bytes, betas: str, version: str) -> Iterator[bytes]:
        """Returns the events of the answer. Raises Refusal."""
        request = decode(body, version)
        dropped = refuse_request(body, self._settings, betas)
        require_max_tokens(request)
        parsed = parse_message(request, body, dropped, self._settings)
        pending = find_pending_code(msgspec.json.decode(body))
        if pending is not None:
            return iter([self._whole(pending, request.model), b'{"type":"message_stop"}'])
        if self.special is not None and not parsed.conversation.is_continued:
            special, self.special = self.special, None
            return iter([self._whole(special(msgspec.json.decode(body)), request.model), b'{"type":"message_stop"}'])
        key = parsed.conversation.key
        self._calls[key] += 1
        answered = reply(parsed, self._calls[key], self._cache.take(body))
        if answered.breaks is not None and answered.breaks.is_http:
            raise Refusal("overloaded_error", "Overloaded")
        return (frame.data.partition(DATA)[2].strip() for frame in frames(answered))

    def _whole(self, content: list[Json], model: str) -> bytes:
        """Returns a `message_start` with the whole answer, which EventOrder takes apart."""
        self._specials += 1
        is_call = any(block["type"] == "tool_use" for block in content)
        has_code = any("caller" in block for block in content)
        for block in content:
            if block["type"] == "redacted_thinking":
                self._settings.known.add(block["data"])
        message = {
            "id": f"msg_special{self._specials}",
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": content,
            "stop_reason": "tool_use" if is_call else "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
            **({"container": {"id": CONTAINER, "expires_at": "2030-01-01T00:00:00Z"}} if has_code else {}),
        }
        return msgspec.json.encode({"type": "message_start", "message": message})

    async def close(self) -> None:
        """Holds nothing."""


def find_pending_code(request: Json) -> list[Json] | None:
    """Returns what follows the results of the calls that code has made; None if no code waits for them."""
    places = read_places(request)
    results = {place.block.get("tool_use_id") for place in places}
    callers = {place.block["caller"]["tool_id"] for place in find_open(places) if "caller" in place.block}
    waiting = sorted(callers - results)
    if not waiting or request["messages"][-1]["role"] != "user":
        return None
    result = {"type": "code_execution_result", "stdout": "1", "stderr": "", "return_code": 0, "content": []}
    blocks = [{"type": "code_execution_tool_result", "tool_use_id": one, "content": result} for one in waiting]
    thought = {"type": "thinking", "thinking": "so that is it", "signature": ""}
    return sign(request, [*blocks, thought, {"type": "text", "text": "It is 1."}])


def sign(request: Json, content: list[Json]) -> list[Json]:
    """Returns the blocks of an answer with the signatures of their thinking."""
    signed: list[Json] = []
    for block in content:
        if block["type"] == "thinking":
            block = block | {"signature": Signer(request).sign(signed, block["thinking"])}  # noqa: PLW2901
        elif block["type"] == "redacted_thinking":
            block = block | {"data": hashlib.sha256(msgspec.json.encode(request)).hexdigest()}  # noqa: PLW2901
        signed.append(block)
    return signed
