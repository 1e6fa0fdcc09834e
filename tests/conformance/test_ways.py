"""Each case reaches a reader in every way as the same message: direct, live, replayed, from the database, as JSON, as
history."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.proto.subjects import STREAM
from tests.conformance.case import Case, read_cases
from tests.conformance.differences import as_history, as_json, as_sent, comparable
from tests.conformance.sdk import accumulate
from tests.harness import processes
from tests.harness.system import System
from tests.harness.turn_builder import MODEL

HEADERS = {"x-api-key": "sk-any", "anthropic-version": "2026-10-21"}
TURN = re.compile(rb'"id":"msg_([^"]+)"')
# The ways in which a case is known to differ. A way that is right must be taken out.
EXPECTED: dict[str, str] = {}
AT_ONCE = 6
# A turn of Tailrace's own API goes on after a pause unless it asks for it.
PAUSES = {"pause_turn": {"on_pause": "return"}}


class Ways:
    """Plays cases in one system. `differences`: for each `CASE WAY`, what differs."""

    def __init__(self, system: System, claude: httpx2.AsyncClient) -> None:
        self.system = system
        self.gateway = system.clients[0]
        self.claude = claude
        self.turns: dict[str, str] = {}
        self.differences: dict[str, str] = {}

    def compare(self, name: str, way: str, found: Any, wanted: Any) -> None:
        if found != wanted:
            self.differences[f"{name} {way}"] = f"{str(found)[:3000]}\n    instead of {str(wanted)[:3000]}"

    def compare_stream(self, name: str, way: str, stream: bytes, *, is_whole: bool = False) -> None:
        case = read_cases()[name]
        if case.message is None:
            self.compare(name, way, inputs_of(stream), inputs_of(case.stream))
            return
        try:
            found = comparable(accumulate(stream))
        except Exception as error:  # noqa: BLE001 - whatever the SDK raises is a difference
            self.differences[f"{name} {way}"] = f"{error!r}: {stream[-500:]!r}"
        else:
            self.compare(name, way, found, comparable(case.whole if is_whole else case.accumulated))

    async def play_all(self) -> None:
        """Plays each case in each way."""
        slots = asyncio.Semaphore(AT_ONCE)

        async def play(name: str) -> None:
            async with slots:
                await self.play_streams(name)

        async with asyncio.TaskGroup() as group:
            for name in read_cases():
                group.create_task(play(name))
        for name in read_cases():
            await self.play_history(name)
        # As after a day, when the log has dropped them.
        await self.system.wait_until_settled()
        await self.system.connection.jetstream.purge_stream(STREAM)
        for name in self.turns:
            self.compare_stream(name, "database", await self.read_turn(name), is_whole=True)

    async def play_streams(self, name: str) -> None:
        """The ways direct, live and replayed; remembers the turn."""
        case = read_cases()[name]
        await self.claude.post(f"/_sim/cases/{name}", content=b"\n".join(case.lines))
        body = {**request_of(name, case), "stream": True}
        direct = await self.claude.post("/v1/messages", json=body, headers=HEADERS | betas_of(case))
        self.compare_stream(name, "direct", direct.content)
        live = await self.gateway.post("/v1/messages", json=body, headers=betas_of(case))
        self.compare_stream(name, "live", live.content)
        found = TURN.search(live.content)
        if found is None:
            self.differences[f"{name} replayed"] = f"no turn: {live.content[:500]!r}"
            return
        self.turns[name] = found[1].decode()
        self.compare_stream(name, "replayed", await self.read_turn(name))
        answered = await self.gateway.post("/v1/messages", json=body | {"stream": False}, headers=betas_of(case))
        self.compare_json(name, answered)

    def compare_json(self, name: str, answered: httpx2.Response) -> None:
        """The way of a request without `stream`."""
        case = read_cases()[name]
        if answered.status_code != 200:
            self.differences[f"{name} json"] = answered.text[:1000]
        elif case.raw:
            self.compare(name, "json", [one for one in case.raw if one not in answered.text], [])
        else:
            self.compare(name, "json", comparable(answered.json()), as_json(case.whole))

    async def read_turn(self, name: str) -> bytes:
        return (await self.gateway.get(f"/v1/turns/{self.turns[name]}/events", params={"dialect": "anthropic"})).content

    async def play_history(self, name: str) -> None:
        """The way of the next turn's history. Cases come one after the other: the model shows its last request."""
        case = read_cases()[name]
        options = dict(case.request)
        own = {key: options.pop(key) for key in ("tools", "betas") if key in options}
        fields = {"session": f"s-{name}", "model": MODEL, **own, **PAUSES.get(name, {})}
        line = f"#sim case={name} rate=0"
        first = {"message": line, "create_session": True, **fields, **({"options": options} if options else {})}
        results = [{"type": "tool_result", "tool_use_id": call, "content": "42"} for call in case.answerable_calls]
        # While code of the API waits for a result, the API takes nothing beside it.
        is_by_code = any("caller" in block for block in case.whole.get("content", [])) if not case.raw else False
        more = [] if is_by_code and results else [{"type": "text", "text": "#sim words=1 rate=0"}]
        question = {"role": "user", "content": [*results, *more]}
        for body in (first, {"messages": [question], **fields}):
            ended = await self.gateway.post("/v1/turns", json=body)
            if ended.status_code == 202:
                ended = await self.gateway.get(f"/v1/turns/{ended.json()['turn']}/events")
            if b'"outcome":"completed"' not in ended.content:
                self.differences[f"{name} history"] = ended.text[-1000:]
                return
        last = await self.claude.get("/_sim/last")
        if case.raw:
            self.compare(name, "history", [last.text for one in case.raw if as_sent(one) not in last.text], [])
            return
        sent = [message["content"] for message in last.json()["body"]["messages"] if message["role"] == "assistant"]
        blocks = [
            {"type": "text", "text": one} if isinstance(one, str) else one
            for content in sent
            for one in listed(content)
        ]
        # A refused answer is not sent again.
        is_refused = case.whole["stop_reason"] == "refusal"
        wanted = [] if is_refused else as_history(case.whole["content"], case.answerable_calls)
        self.compare(name, "history", as_history(blocks, case.answerable_calls), wanted)


def listed(content: str | list[Any]) -> list[Any]:
    return [content] if isinstance(content, str) else content


def request_of(name: str, case: Case) -> dict[str, Any]:
    """Returns the body of the request whose answer is the case."""
    fields = {key: value for key, value in case.request.items() if key != "betas"}
    return {
        "model": MODEL,
        "max_tokens": 1000,
        **fields,
        "messages": [{"role": "user", "content": f"#sim case={name} rate=0"}],
    }


def betas_of(case: Case) -> dict[str, str]:
    return {"anthropic-beta": ",".join(case.request["betas"])} if "betas" in case.request else {}


def inputs_of(stream: bytes) -> str:
    """Returns the text of the tools' inputs in a stream."""
    pieces = re.findall(rb'"partial_json":("(?:[^"\\\\]|\\\\.)*")', stream)
    return "".join(msgspec.json.decode(piece) for piece in pieces)


@asynccontextmanager
async def playing(folder: Path) -> AsyncIterator[Ways]:
    async with System(folder, settings={"generator": processes.QUICK_RETRY | {"TAILRACE_ATTEMPTS_MAX": 2}}) as system:
        await system.start()
        async with httpx2.AsyncClient(base_url=system.claude.url, headers=HEADERS, timeout=30) as claude:
            yield Ways(system, claude)


@pytest.mark.timeout(240)
async def test_each_way_has_the_message_that_the_sdk_accumulates(tmp_path: Path) -> None:
    """The same message, whichever way a client takes."""
    async with playing(tmp_path) as ways:
        await ways.play_all()
    expected = {f"{name} {way}" for name, listed_ways in EXPECTED.items() for way in listed_ways.split()}
    found = [f"{way}: {what}" for way, what in sorted(ways.differences.items()) if way not in expected]
    assert not found, "\n".join(found)
    assert expected - set(ways.differences) == set(), "these ways are right now: take them out of EXPECTED"
