"""Any content of a model gives the same events in three SSE parsers: our strict one, httpx-sse's and Chromium's.

An event stream is lines. Every character that ends a line in some standard is in each place that a model or a client
fills: text, thinking, a tool's name and input, an error's message.
"""

import json
from collections.abc import Iterator
from html import unescape
from typing import Any

import httpx
import pytest
from httpx_sse import EventSource

from tailrace.features.gateway import DIALECTS
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.http.sse import EVENT_NAME, MEDIA_TYPE
from tailrace.proto import events
from tailrace.proto.entries import Failure
from tailrace.proto.ids import TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tests.clients import node
from tests.harness.readers import read_bytes
from tests.harness.sse_parser import parse
from tests.harness.turn_writer import Writer
from tests.integration.conftest import NewGateway

ENDS_OF_LINES = ["\r", "\n", "\r\n", "\n\n", "\r\r", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]
NASTY = [
    *(f"a{end}b" for end in ENDS_OF_LINES),
    *(f"{end}data: stolen{end}id: 9{end}{end}" for end in ENDS_OF_LINES),
    *(
        "\0",
        "\ufeff",
        "\ufeffdata: x",
        ": hb\n",
        "event: done\ndata: {}\n\n",
        "retry: 0\n",
        "[DONE]",
        "data: [DONE]\n\n",
    ),
    *(
        "\x1b[31m",
        "\u202e",
        "\u200b",
        "\U0001f30a",
        "\ud7ff\ue000",
        "\uffff",
        "</script>",
        "\\u2028\\n",
        '"}\n\n',
        "%0d%0a",
    ),
]
SSE = sorted(name for name, dialect in DIALECTS.items() if dialect.media_type == MEDIA_TYPE)


def strings_in(value: Any) -> Iterator[str]:
    """Returns every string in a JSON value."""
    match value:
        case str():
            yield value
        case list():
            for each in value:
                yield from strings_in(each)
        case dict():
            for each in value.values():
                yield from strings_in(each)


async def write_turn(log: TurnLog) -> TurnKey:
    """Writes a turn with the content in each kind of block."""
    key = TurnKey(LOCAL.access.tenant, TurnId(new_id()))
    writer = Writer(log, key)
    await writer.open(*NASTY)
    await writer.store_events(
        events.BlockStop(0),
        events.BlockStart(1, {"type": "thinking", "thinking": ""}),
        *(events.BlockDelta(1, events.ThinkingDelta(text)) for text in NASTY),
        events.BlockStop(1),
        events.BlockStart(2, {"type": "tool_use", "id": "toolu_1", "name": "".join(NASTY), "input": {}}),
        events.BlockDelta(2, events.InputJsonDelta(json.dumps({"a": NASTY}, ensure_ascii=False))),
        events.BlockStop(2),
        events.MessageDelta(events.StopReason("tool_use"), events.UsageSoFar(output_tokens=5)),
    )
    await writer.end()
    return key


async def write_failed_turn(log: TurnLog) -> TurnKey:
    """Writes a turn whose error has the content."""
    key = TurnKey(LOCAL.access.tenant, TurnId(new_id()))
    writer = Writer(log, key)
    await writer.open("a")
    await writer.end("failed", Failure("backend_failed", "".join(NASTY)))
    return key


def decode_strictly(body: bytes) -> list[list[str]]:
    return [[event.event or "message", event.data] for event in parse(body)]


def decode_with_httpx_sse(body: bytes) -> list[list[str]]:
    response = httpx.Response(200, headers={"content-type": MEDIA_TYPE}, content=body)
    return [[event.event, event.data] for event in EventSource(response).iter_sse()]


@pytest.mark.rule("S5")
async def test_three_parsers_agree_on_any_content(
    nats_url: str, new_gateway: NewGateway, log: TurnLog, browser: str
) -> None:
    """In every dialect that is an event stream: the same names, and the exact text."""
    gateway = await new_gateway(nats_url, api_keys="")
    whole, broken = await write_turn(log), await write_failed_turn(log)
    streams = [(dialect, key) for dialect in SSE for key in (whole, broken)]
    urls = [f"{gateway.url}/v1/turns/{key.turn}/events?dialect={dialect}" for dialect, key in streams]
    bodies = [await read_bytes(gateway.client, url) for url in urls]
    ours = [decode_strictly(body) for body in bodies]
    assert [decode_with_httpx_sse(body) for body in bodies] == ours
    names = sorted({name for stream in ours for name, _ in stream})
    assert all(EVENT_NAME.fullmatch(name.encode()) for name in names)
    shown = await node.run("contents.mjs", ",".join(names), *urls, CHROMIUM=browser)
    assert [one["events"] for one in shown] == ours
    for (dialect, key), stream in zip(streams, ours, strict=True):
        if dialect == "html":
            contents = {unescape(data) for _, data in stream}
        else:
            contents = {leaf for _, data in stream if data != "[DONE]" for leaf in strings_in(json.loads(data))}
        if key == whole and dialect == "state":
            assert "".join(NASTY) in contents
        elif key == whole:
            assert [text for text in NASTY if text not in contents] == [], dialect
        elif dialect == "tailrace":
            assert "".join(NASTY) in contents


@pytest.mark.rule("S5")
async def test_tailrace_js_has_the_exact_text_of_any_content(
    nats_url: str, new_gateway: NewGateway, log: TurnLog
) -> None:
    gateway = await new_gateway(nats_url, api_keys="")
    key = await write_turn(log)
    (shown,) = await node.run("content.mjs", gateway.url, key.turn)
    assert shown["text"] == "".join(NASTY)
