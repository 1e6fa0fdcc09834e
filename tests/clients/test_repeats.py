"""The requests that clients repeat by themselves after each end of a turn: repeats.csv, a table of docs/CLIENTS.md.

A row has the requests that a client with its default settings has sent, the turns that were paid, and what its user
sees at the end. No client pays for a second turn after a stop.
"""

import csv
from asyncio import create_task
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import httpx2
import msgspec
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

import tailrace
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.turns.cancel import cancel
from tailrace.proto.end_entry import build_end
from tailrace.proto.entries import CancelCause, End, Failure, Request
from tailrace.proto.errors import FenceLost
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.clients import node
from tests.clients.matrix import MODEL
from tests.clients.test_anthropic_claude_code import BINARY
from tests.harness.cutting_proxy import Cutting
from tests.harness.generator_in_loop import words
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway

WORDS = 40
TEXT = words(WORDS)
# After so many characters the turn ends.
SHOWN = len(words(8))


class Seen(NamedTuple):
    """The text and the error that a client shows to its user."""

    text: str
    error: str | None = None

    def summary(self) -> str:
        if self.text == TEXT:
            return "the answer" if self.error is None else "the answer, then an error"
        shown = "a part of the answer" if self.text else "nothing"
        return shown if self.error is None else f"{shown}, then an error" if self.text else "an error"


Ask = Callable[[str, str, Path], Awaitable[Seen]]


def node_client(name: str) -> Ask:
    async def ask(url: str, line: str, _: Path) -> Seen:
        (shown,) = await node.run("repeats.mjs", name, url, KEY, line)
        return Seen(**shown)

    return ask


async def ask_anthropic(url: str, line: str, _: Path) -> Seen:
    text, messages = "", [{"role": "user", "content": line}]
    async with AsyncAnthropic(base_url=url, api_key=KEY) as sdk:
        try:
            async with sdk.messages.stream(model=MODEL, max_tokens=500, messages=messages) as stream:  # type: ignore[arg-type]
                async for delta in stream.text_stream:
                    text += delta
        except (anthropic.AnthropicError, httpx2.HTTPError) as error:
            return Seen(text, repr(error))
    return Seen(text)


async def ask_anthropic_without_stream(url: str, line: str, _: Path) -> Seen:
    async with AsyncAnthropic(base_url=url, api_key=KEY) as sdk:
        try:
            made: Any = await sdk.messages.create(
                model=MODEL, max_tokens=500, messages=[{"role": "user", "content": line}]
            )
        except anthropic.AnthropicError as error:
            return Seen("", repr(error))
    return Seen(made.content[0].text)


async def ask_chat_without_stream(url: str, line: str, _: Path) -> Seen:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as sdk:
        try:
            made = await sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": line}])
        except openai.OpenAIError as error:
            return Seen("", repr(error))
    return Seen(made.choices[0].message.content or "")


async def ask_tailrace(url: str, line: str, _: Path) -> Seen:
    text = ""
    async with httpx2.AsyncClient(trust_env=False) as http:
        try:
            answer = await tailrace.AsyncClient(url, KEY, http=http).ask(line)
            async for event in answer:
                text += event.text if event.type == "delta" else ""
            end = await answer.done()
        except tailrace.TailraceError as error:
            return Seen(text, repr(error))
    return Seen(text, None if end.outcome == "completed" else end.outcome)


async def ask_claude_code(url: str, line: str, home: Path) -> Seen:
    argv = [str(BINARY), "-p", line, "--output-format", "json"]
    environ = {"HOME": home, "ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": KEY}
    try:
        shown = msgspec.json.decode(await node.command(argv, environ, home))
    except AssertionError as failed:
        # It exits with status 1 after an error, which it also prints.
        shown = msgspec.json.decode(next(one for one in str(failed).split("\n") if '"type":"result"' in one).strip())
    if isinstance(shown, list):
        shown = shown[-1]
    return Seen("", shown["result"]) if shown["is_error"] else Seen(shown["result"])


CLIENTS: dict[str, Ask] = {
    "Claude Code": ask_claude_code,
    "anthropic (Python), stream": ask_anthropic,
    "anthropic (Python), no stream": ask_anthropic_without_stream,
    "@anthropic-ai/sdk, stream": node_client("anthropic"),
    "openai (Python), chat, no stream": ask_chat_without_stream,
    "openai (Node), chat, stream": node_client("chat"),
    "openai (Node), responses, stream": node_client("responses"),
    "AI SDK generateText": node_client("generateText"),
    "AI SDK generateText, key `auto`": node_client("generateTextAuto"),
    "AI SDK streamText": node_client("streamText"),
    "fetch-event-source (POST)": node_client("fetchEventSource"),
    "tailrace.js": node_client("tailrace"),
    "tailrace.AsyncClient": ask_tailrace,
}


class Running(NamedTuple):
    """The first turn of a client, which has written a part of its answer."""

    gateway: Gateway
    log: TurnLog
    key: TurnKey
    proxy: Cutting

    async def fail(self, code: str) -> None:
        await self._end(lambda turn: build_end(turn, "failed", Failure(code, "it failed")))

    async def reach_max_cost(self) -> None:
        await self._end(lambda turn: msgspec.structs.replace(build_end(turn, "completed"), stop_reason="max_cost"))

    async def _end(self, build: Callable[[Turn], End]) -> None:
        """Ends the turn as its generator would."""
        while True:
            turn = await self.log.read_turn(ScopedKey.whole(self.key))
            with suppress(FenceLost):
                await self.log.append(self.key, turn.chain, build(turn))
                return

    async def cancel(self, path: str) -> None:
        (await self.gateway.client.post(path)).raise_for_status()

    async def cancel_session(self) -> None:
        session = (await self.gateway.client.get(f"/v1/turns/{self.key.turn}")).json()["session"]
        await self.cancel(f"/v1/sessions/{session}/cancel")

    async def delete(self) -> None:
        (await self.gateway.client.delete(f"/v1/turns/{self.key.turn}")).raise_for_status()

    async def lose(self, cause: CancelCause | None) -> None:
        """Cuts the client's connection. Its turn goes on, or is cancelled before the client's next request."""
        self.proxy.cut_all()
        if cause is not None:
            await cancel(self.log, ScopedKey.whole(self.key), cause)


ENDS: dict[str, Callable[[Running], Awaitable[None]] | None] = {
    "completed": None,
    "completed by `max_cost`": Running.reach_max_cost,
    "cancelled by a request": lambda one: one.cancel(f"/v1/turns/{one.key.turn}/cancel"),
    "cancelled with its session": Running.cancel_session,
    "deleted": Running.delete,
    "connection lost": lambda one: one.lose(None),
    "connection lost, then cancelled by a request": lambda one: one.lose("request"),
    "connection lost, then cancelled by `on_disconnect`": lambda one: one.lose("on_disconnect"),
    "failed (`backend_broken`)": lambda one: one.fail("backend_broken"),
    "failed (`deadline_exceeded`)": lambda one: one.fail("deadline_exceeded"),
}
STOPS = {
    "cancelled by a request",
    "cancelled with its session",
    "deleted",
    "connection lost, then cancelled by a request",
}


class Row(NamedTuple):
    """A line of repeats.csv."""

    group: str
    client: str
    end: str
    requests: str
    turns: str
    sees: str


def read_rows() -> list[Row]:
    with (Path(__file__).parent / "repeats.csv").open(newline="") as file:
        _, *lines = csv.reader(file)
    return [Row(*line) for line in lines]


ROWS = read_rows()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.client}: {row.end}")
async def test_the_client_repeats_so_many_requests_and_pays_for_so_many_turns(
    gateway: Gateway,
    system_log: TurnLog,
    tenant: Tenant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row: Row,
) -> None:
    mark = new_id()
    requests: list[str] = []
    turns: list[TurnId] = []
    read, append = ApiRequest.read, TurnLog.append

    async def count_request(self: ApiRequest, *arguments: Any, **named: Any) -> Any:
        body, raw = await read(self, *arguments, **named)
        if mark.encode() in raw and not self.url.path.endswith("count_tokens"):
            requests.append(self.url.path)
        return body, raw

    async def count_turn(self: TurnLog, key: TurnKey, chain: Any, entry: Any, **named: Any) -> Any:
        if isinstance(entry, Request) and mark in str(entry.messages) and key.turn not in turns:
            turns.append(key.turn)
        return await append(self, key, chain, entry, **named)

    monkeypatch.setattr(ApiRequest, "read", count_request)
    monkeypatch.setattr(TurnLog, "append", count_turn)

    async def has_begun() -> bool:
        return (
            bool(turns) and len((await system_log.read_turn(ScopedKey.whole(TurnKey(tenant, turns[0])))).text) >= SHOWN
        )

    # On a busy machine, an answer of two seconds would be over before its stop.
    words = 10 * WORDS if row.end in STOPS and row.sees.endswith("an error") else WORDS
    async with Cutting(gateway.port) as proxy:
        asking = create_task(_seen_by(CLIENTS[row.client], proxy.url, f"#sim words={words} rate=20\n{mark}", tmp_path))
        if (end := ENDS[row.end]) is not None:
            await until(has_begun, 15)
            await end(Running(gateway, system_log, TurnKey(tenant, turns[0]), proxy))
        seen = await asking
    found = row._replace(requests=str(len(requests)), turns=str(len(turns)), sees=seen.summary())
    assert found == row, seen


async def _seen_by(ask: Ask, url: str, line: str, home: Path) -> Seen:
    return await ask(url, line, home)


def test_the_table_has_each_client_with_each_end() -> None:
    assert [(row.client, row.end) for row in ROWS] == [(client, end) for client in CLIENTS for end in ENDS]


def test_no_client_pays_for_a_second_turn_after_a_stop() -> None:
    """Unless nothing in its repetition says that it is one."""
    paid = {row.client for row in ROWS if row.end in STOPS and row.turns != "1"}
    assert paid == {"AI SDK generateText"}
