"""Plays a history in each way in which a client can send it, in process, and returns what the model gets.

`World` is the product from the body of a request to the row of its turn; the simulated Claude refuses what the API
refuses.
"""

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from tailrace.deploy.simulated_claude.refusal import Refusal
from tailrace.features.batches import openai_input
from tailrace.features.responses_socket.kept_input import KeptInput, encode, input_items
from tailrace.features.responses_socket.messages import Create, parse_fields, parse_message
from tailrace.gateway.http import read_body
from tailrace.gateway.http.large_bodies import LargeBodies
from tailrace.gateway.http.read_body import BodyReader
from tailrace.gateway.turns.conversation_match import Position
from tailrace.gateway.turns.read_turn import TurnReader
from tailrace.gateway.turns.request_body import build_entry, check_turn, new_messages
from tailrace.generators.backends.anthropic_api import encode_body
from tailrace.generators.continuation import build_call
from tailrace.proto.errors import Refused
from tailrace.proto.ids import SessionId, TurnKey
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.records import TurnRecord
from tailrace.protocols.openai import responses_request
from tailrace.protocols.openai.item_references import insert_items
from tailrace.protocols.openai.responses_stream import response_of
from tests.conformance import history_format as form
from tests.conformance.history_case import (
    Exchange,
    HistoryCase,
    Item,
    Own,
    exchanges,
    has_refused_file,
    is_question,
)
from tests.conformance.history_format import Inexpressible, Json
from tests.sessions.client import Sent
from tests.sessions.play import patched
from tests.sessions.stand_in import VERSION, StandIn
from tests.sessions.world import HOOKS, MAX_TOKENS, OFFER, TENANT, World, model_of

SCOPE = Scope(TENANT, WHOLE)
SESSION = "s"
BYTES_MAX = 4 * 1024 * 1024
FAILED: list[Json] = [{"type": "failed"}]
"""In place of an answer: its turn is cancelled."""
THANKS = [{"type": "text", "text": "Yes."}]
TOOL = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}}
SEARCH = {"type": "web_search_20250305", "name": "web_search"}


class Outcome(NamedTuple):
    """The request that the model gets; or the refusal of the history, by Tailrace or by the API."""

    sent: list[Item] | None
    refused: str = ""
    """Tailrace's message."""
    api_refuses: str = ""
    """The message of Claude's API."""


class ApiRefused(Exception):
    """Claude's API refuses the request."""


class Recorder(StandIn):
    """Keeps the requests that it accepts, and answers each with the next of `answers`."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: list[Json] = []
        self._settings.known |= {form.signature_of({"thinking": text}) for text in form.THOUGHTS}

    def check(self, body: bytes) -> None:
        """Raises ApiRefused for the request of a message batch."""
        try:
            self._answer(body, "", VERSION)
        except Refusal as refused:
            raise ApiRefused(refused.message) from refused

    def _answer(self, body: bytes, betas: str, version: str) -> Iterator[bytes]:
        lines = super()._answer(body, betas, version)
        self.accepted.append(json.loads(body))
        return lines


class Player:
    """Plays one history. `model`: the model that answers."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.world = World(0)
        self.claude = self.world.claude = Recorder()

    async def ask(self, path: str, body: Json, answer: list[Json]) -> TurnRecord:
        """Posts a body and runs its turn, which gets `answer`. Raises Refused, ApiRefused."""
        body = {"model": self.model, **body}
        if path != "/v1/responses":
            return await self._run(await self.world.post(Sent(path, body)), answer)
        request = read_body.convert(body, responses_request.ResponseRequest)
        history: Any = self.world.history
        reader = TurnReader(self.world.log, history)
        items, _ = await insert_items(request.input, SCOPE, reader, BYTES_MAX)
        request = msgspec.structs.replace(request, input=items)
        return await self._run(
            await self.world.store(responses_request.build_turn(request, model_of(body)).turn), answer
        )

    async def _run(self, key: TurnKey, answer: list[Json]) -> TurnRecord:
        if answer == FAILED:
            await self.world.cancel(key)
        self.claude.special = lambda _: answer or THANKS
        record = await self.world.run(key)
        if self.claude.refused:
            raise ApiRefused(self.claude.refused[-1][1])
        return record

    @property
    def outcome(self) -> Outcome:
        return Outcome(form.items_of(self.claude.accepted[-1]))

    # One request with the whole history

    async def chat(self, items: Sequence[Item]) -> None:
        await self.ask("/v1/chat/completions", _chat(items), [])

    async def responses(self, items: Sequence[Item]) -> None:
        await self.ask("/v1/responses", {"input": form.response_items(items), **_TOOLS_OF_RESPONSES}, [])

    async def ui(self, items: Sequence[Item]) -> None:
        await self.ask("/api/chat", {**_UI, "messages": form.ui_messages(items)}, [])

    async def ui_content(self, items: Sequence[Item]) -> None:
        body = {"threadId": SESSION, "tools": [TOOL], "messages": form.ui_contents(items)}
        await self.ask("/api/chat", body, [])

    async def agents(self, items: Sequence[Item]) -> None:
        await self.ask("/api/agui", _agents(items, self.model), [])

    # One request after the other, in a session

    async def turns(self, items: Sequence[Item]) -> None:
        for exchange in _asked(items):
            body = {"session": SESSION, "create_session": True, "tools": [TOOL, SEARCH]}
            messages = form.question_messages(exchange.asked)
            await self.ask("/v1/turns", body | {"messages": messages}, form.answer_blocks(exchange.answered))

    async def chat_session(self, items: Sequence[Item]) -> None:
        """The client sends what is new."""
        for exchange in _asked(items):
            body = _chat(exchange.asked) | {"session_id": SESSION}
            await self.ask("/v1/chat/completions", body, form.answer_blocks(exchange.answered))

    async def responses_previous(self, items: Sequence[Item]) -> None:
        more: Json = {}
        for exchange in _asked(items):
            body = {"input": form.response_items(exchange.asked), **_TOOLS_OF_RESPONSES, **more}
            record = await self.ask("/v1/responses", body, form.answer_blocks(exchange.answered))
            more = {"previous_response_id": f"resp_{record.turn}"}

    async def thread(self, body_of: Callable[[Sequence[Item]], Json], path: str, items: Sequence[Item]) -> None:
        """The client sends all of its messages each time."""
        sent: list[Item] = []
        for exchange in _asked(items):
            sent += exchange.asked
            await self.ask(path, body_of(sent), form.answer_blocks(exchange.answered))
            sent += exchange.answered

    async def chat_thread(self, items: Sequence[Item]) -> None:
        await self.thread(lambda sent: _chat(sent) | {"session_id": SESSION}, "/v1/chat/completions", items)

    async def responses_thread(self, items: Sequence[Item]) -> None:
        def body_of(sent: Sequence[Item]) -> Json:
            return {"input": form.response_items(sent), "session_id": SESSION, **_TOOLS_OF_RESPONSES}

        await self.thread(body_of, "/v1/responses", items)

    async def ui_thread(self, items: Sequence[Item]) -> None:
        await self.thread(lambda sent: {**_UI, "messages": form.ui_messages(sent)}, "/api/chat", items)

    async def agents_thread(self, items: Sequence[Item]) -> None:
        await self.thread(lambda sent: _agents(sent, self.model), "/api/agui", items)

    # Items of stored responses

    async def responses_output(self, items: Sequence[Item]) -> None:
        """The client sends back the items of each response, as OpenAI's Agents SDK does."""
        await self._with_stored(items, lambda item: item)

    async def responses_reference(self, items: Sequence[Item]) -> None:
        await self._with_stored(items, lambda item: {"type": "item_reference", "id": item["id"]})

    async def _with_stored(self, items: Sequence[Item], as_sent: Callable[[Json], Json]) -> None:
        found: list[Json] = []
        record: TurnRecord | None = None
        for exchange in exchanges(items):
            found += form.response_items(exchange.asked)
            if exchange.answered:
                blocks = form.answer_blocks(exchange.answered)
                body: Json = {"input": "Go.", **_TOOLS_OF_RESPONSES}
                if record is not None and "found" in exchange.answered[0]:
                    # The answer before has the call.
                    body |= {
                        "input": form.response_items(exchange.asked),
                        "previous_response_id": f"resp_{record.turn}",
                    }
                record = await self.ask("/v1/responses", body, blocks)
                found += map(as_sent, response_of(record)["output"])
        await self.ask("/v1/responses", {"input": found, **_TOOLS_OF_RESPONSES}, [])

    # The socket of responses, and batches

    async def responses_socket(self, items: Sequence[Item]) -> None:
        """Each response is kept by the connection only (`store: false`), and the next one sends its new items."""
        kept = KeptInput(lambda _: True)
        more: Json = {}
        for number, exchange in enumerate(_asked(items)):
            body = {"model": self.model, "input": form.response_items(exchange.asked), **_TOOLS_OF_RESPONSES, **more}
            text = json.dumps({"type": "response.create", **body, "store": False}).encode()
            message = parse_message(parse_fields(text), len(text))
            assert isinstance(message, Create)
            fields = kept.extend(message.body) or message.body
            sent = msgspec.json.decode(msgspec.json.encode(fields))
            record = await self.ask("/v1/responses", sent, form.answer_blocks(exchange.answered))
            kept.keep(None, f"resp_{number}", fields, [encode(item) for item in response_of(record)["output"]])
            more = {"previous_response_id": f"resp_{number}"}
        assert input_items(fields)

    async def batch(self, body: Json, endpoint: str) -> None:
        """The request of an input of a batch, as the message batch has it."""
        bodies = BodyReader(LargeBodies(bytes_max=1 << 30, timeout_s=1), bytes_max=1 << 30, timeout_s=1, rate_min=1)
        raw = json.dumps({"model": self.model, **body}).encode()
        turn = (await openai_input.BUILDERS[endpoint](raw, bodies, OFFER)).turn
        check_turn(turn)
        position = Position(session=SessionId(SESSION), new=new_messages(turn))
        entry = build_entry(turn, position, MAX_TOKENS, OFFER, pseudonym=str)
        self.claude.check(b"".join(await encode_body(build_call(entry, HOOKS.all_filters), model=self.model)))

    async def chat_batch(self, items: Sequence[Item]) -> None:
        await self.batch(_chat(items), openai_input.CHAT)

    async def responses_batch(self, items: Sequence[Item]) -> None:
        await self.batch({"input": form.response_items(items), **_TOOLS_OF_RESPONSES}, openai_input.RESPONSES)


def _asked(items: Sequence[Item]) -> list[Exchange]:
    """Returns the exchanges of a session. Raises Inexpressible for what no session can have."""
    found = exchanges(items)
    if any(not exchange.asked for exchange in found) or found[-1].answered:
        raise Inexpressible("an answer without a question")
    if any("break" in item for item in items):
        raise Inexpressible("two answers in a row")
    if not all(is_question(exchange.asked) for exchange in found[:-1]) or not is_question(found[-1].asked, blank=True):
        raise Inexpressible("an answer to no question")
    if any(has_refused_file(exchange.asked) for exchange in found[:-1]):
        raise Inexpressible("an answer to a question that was refused")
    return found


def _chat(items: Sequence[Item]) -> Json:
    return {"messages": form.chat_messages(items), "tools": [{"type": "function", "function": _FUNCTION}]}


_FUNCTION = {"name": TOOL["name"], "description": TOOL["description"], "parameters": TOOL["input_schema"]}
_TOOLS_OF_RESPONSES: Json = {"tools": [{"type": "function", **_FUNCTION}, {"type": "web_search"}]}
_UI: Json = {"id": SESSION, "tools": [TOOL, SEARCH], "trigger": "submit-message"}


def _agents(items: Sequence[Item], model: str) -> Json:
    messages, decisions = form.agent_messages(items), form.agent_decisions(items)
    more = {"resume": decisions} if decisions else {}
    props = {"model": model, "tools": [TOOL, SEARCH]}
    return {"threadId": SESSION, "runId": f"r{len(messages)}", "messages": messages, "forwardedProps": props, **more}


Way = Callable[[Player, Sequence[Item]], Awaitable[None]]
WAYS: dict[str, Way] = {
    "chat": Player.chat,
    "chat-session": Player.chat_session,
    "chat-thread": Player.chat_thread,
    "chat-batch": Player.chat_batch,
    "responses": Player.responses,
    "responses-output": Player.responses_output,
    "responses-reference": Player.responses_reference,
    "responses-previous": Player.responses_previous,
    "responses-thread": Player.responses_thread,
    "responses-socket": Player.responses_socket,
    "responses-batch": Player.responses_batch,
    "ui": Player.ui,
    "ui-thread": Player.ui_thread,
    "ui-content": Player.ui_content,
    "agents": Player.agents,
    "agents-thread": Player.agents_thread,
    "turns": Player.turns,
}


async def play(way: str, items: Sequence[Item], model: str) -> Outcome | None:
    """Returns what the model gets of a history; None if the way cannot express it."""
    player = Player(model)
    try:
        await WAYS[way](player, items)
    except Inexpressible:
        return None
    except Refused as refused:
        return Outcome(None, refused=refused.message)
    except ApiRefused as refused:
        return Outcome(None, api_refuses=str(refused))
    return player.outcome


def is_right(found: Outcome, expected: Own | HistoryCase) -> bool:
    """Returns whether the outcome of a way is the one that a case expects."""
    if expected.sent is not None:
        return found.sent == form.expand(expected.sent)
    if expected.refused:
        return re.search(expected.refused, found.refused) is not None
    return re.search(expected.api_refuses, found.api_refuses) is not None


async def find_differences(cases: Mapping[str, HistoryCase]) -> tuple[int, list[str]]:
    """Plays the cases in all ways. Returns the number of cells, and what is wrong."""
    count, wrong = 0, list[str]()
    with patched():
        for name, case in cases.items():
            for way in WAYS:
                found = await play(way, case.items, case.model)
                count += found is not None
                if found is not None and not is_right(found, case.expected(way)):
                    wrong.append(f"{name} {way}: {found}")
    return count, wrong
