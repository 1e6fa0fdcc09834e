"""OpenAI's built-in tools on Claude's server tools, with the Python SDK."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import openai
import pytest

from tailrace.proto.server_tools import is_real_result
from tests.clients import node
from tests.clients.conftest import Takeover
from tests.clients.openai_chat import MODEL, sdk_of, user_message
from tests.clients.test_python_frameworks import answers
from tests.harness.generator_in_loop import read_last_request, words
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, on_shared_loop

PYTHON = "openai (Python)"
DIALECT = "openai-responses"
SEARCH: Any = {
    "type": "web_search",
    "filters": {"allowed_domains": ["page.example"]},
    "user_location": {"city": "Bonn"},
}
CODE: Any = {"type": "code_interpreter", "container": {"type": "auto"}}
TOKEN = "token-of-the-mcp-server"
MCP: Any = {
    "type": "mcp",
    "server_label": "simulated",
    "server_url": "https://mcp.example/mcp",
    "authorization": TOKEN,
    "require_approval": "never",
}
TOOLS = [SEARCH, CODE, MCP]
LINE = "#sim words=6 rate=0 server=web_search*2 cites=2"
EACH = "#sim words=8 rate=0 server=web_search,bash_code_execution,mcp"
NEXT = "#sim words=2 rate=0"
# What a search with citations looks like at Claude: each cited passage is a block of its own. (text, cited page)
CITED = [("Rivers: ", None), ("the Rhine 🌊 is long", 1), (", and ", None), ("the Elbe is longer", 2), (".", None)]
CITED_TEXT = "".join(text for text, _ in CITED)


def search_item(response: str, block: int, number: int) -> dict[str, Any]:
    """The item of the search that the simulated Claude numbers so."""
    query, url = f"tailrace {number}", f"https://page.example/{number}"
    action = {"type": "search", "query": query, "queries": [query], "sources": [{"type": "url", "url": url}]}
    item_id = f"ws_{response.removeprefix('resp_')}_{block}"
    return {"id": item_id, "type": "web_search_call", "status": "completed", "action": action}


def cited_events() -> list[dict[str, Any]]:
    """The events of Claude's answer with the blocks CITED, after a search."""
    usage = {"input_tokens": 10, "output_tokens": 1}
    shell = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": MODEL, "usage": usage}
    page = {"type": "web_search_result", "url": "https://page.example/1", "title": "P", "encrypted_content": "c2lt"}
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "rivers"}}
    found = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [page]}
    blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [(search, []), (found, [])]
    for text, number in CITED:
        deltas: list[dict[str, Any]] = [{"type": "text_delta", "text": text}]
        if number is not None:
            place = {"url": f"https://page.example/{number}", "title": f"Page {number}", "encrypted_index": "c2lt"}
            cited = {"type": "web_search_result_location", "cited_text": "…", **place}
            deltas.insert(0, {"type": "citations_delta", "citation": cited})
        blocks.append(({"type": "text", "text": ""}, deltas))
    events: list[dict[str, Any]] = [{"type": "message_start", "message": shell}]
    for index, (block, deltas) in enumerate(blocks):
        events.append({"type": "content_block_start", "index": index, "content_block": block})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    ended = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}
    return [*events, ended, {"type": "message_stop"}]


async def play(claude: str, name: str, events: list[dict[str, Any]]) -> str:
    """Returns the question that the simulated Claude answers with these events."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        lines = b"\n".join(map(msgspec.json.encode, events))
        assert (await client.post(f"{claude}/_sim/cases/{name}", content=lines)).status_code < 300
    return f"#sim case={name} rate=0"


def kinds(output: list[Any]) -> list[str]:
    return [item.type for item in output]


def without_ids(output: list[Any]) -> list[dict[str, Any]]:
    """Returns the items of two answers as far as they are equal."""
    return [{**item.to_dict(), "id": "", "container_id": ""} for item in output]


@pytest.mark.proves(DIALECT, "built-in tools", PYTHON)
async def test_web_search(claude: str, sdk: Any) -> None:
    """Streamed and not: each search is an item, and has its events in OpenAI's order."""
    made = await sdk.responses.create(
        model=MODEL, input=LINE, tools=[SEARCH], include=["web_search_call.action.sources"], max_tool_calls=5
    )
    sent = (await read_last_request(claude))["body"]["tools"]
    place = {"type": "approximate", "city": "Bonn"}
    searching = {"type": "web_search_20250305", "name": "web_search", "user_location": place, "max_uses": 5}
    assert sent == [searching | {"allowed_domains": ["page.example"]}]
    assert kinds(made.output) == ["message", "web_search_call", "message", "web_search_call", "message"]
    assert [made.output[number].to_dict() for number in (1, 3)] == [
        search_item(made.id, 1, 1),
        search_item(made.id, 4, 2),
    ]
    assert made.output_text == words(6)
    stream = await sdk.responses.create(model=MODEL, input=LINE, tools=[SEARCH], stream=True)
    events: list[Any] = [event async for event in stream]
    assert [event.type for event in events if getattr(event, "output_index", None) == 1] == [
        "response.output_item.added",
        "response.web_search_call.in_progress",
        "response.web_search_call.searching",
        "response.web_search_call.completed",
        "response.output_item.done",
    ]
    assert without_ids(events[-1].response.output) == without_ids(made.output)
    assert (await sdk.responses.retrieve(made.id)).to_dict() == made.to_dict()
    record: Any = await sdk.get(f"/turns/{made.id.removeprefix('resp_')}", cast_to=object)
    # Two searches at $0.01, and a few tokens.
    assert record["cost_usd"] == pytest.approx(0.02, abs=0.001)


@pytest.mark.proves(DIALECT, "built-in tools", PYTHON)
@pytest.mark.proves("openai-chat", "web search", PYTHON)
async def test_annotations_have_the_places_of_the_cited_text(claude: str, sdk: Any) -> None:
    """An answer is one message, although Claude begins a block at each citation."""
    line = await play(claude, "cited", cited_events())
    expected = [(text, f"https://page.example/{number}") for text, number in CITED if number is not None]
    made = await sdk.responses.create(model=MODEL, input=line, tools=[SEARCH])
    async with sdk.responses.stream(model=MODEL, input=line, tools=[SEARCH]) as stream:
        final: Any = await stream.get_final_response()
    for response in (made, final):
        assert kinds(response.output) == ["web_search_call", "message"]
        (part,) = response.output[1].content
        assert part.text == CITED_TEXT
        assert [(part.text[one.start_index : one.end_index], one.url) for one in part.annotations] == expected
    asking: Any = {"model": MODEL, "messages": user_message(line), "web_search_options": {"search_context_size": "low"}}
    whole = await sdk.chat.completions.create(**asking)
    async with sdk.chat.completions.stream(**asking) as chunks:
        accumulated = await chunks.get_final_completion()
    for message in (whole.choices[0].message, accumulated.choices[0].message):
        assert message.content == CITED_TEXT
        cited = [one["url_citation"] for one in message.to_dict()["annotations"]]
        assert [(CITED_TEXT[one["start_index"] : one["end_index"]], one["url"]) for one in cited] == expected
    # Chat completions have no items for calls.
    assert whole.to_dict()["warnings"][0]["types"] == ["server_tool_use", "web_search_tool_result"]


@pytest.mark.proves(DIALECT, "built-in tools", PYTHON)
async def test_each_tool_over_http_and_a_websocket(sdk: Any) -> None:
    """The items are equal. A stream that is cut after any event goes on behind it."""
    made = await sdk.responses.create(model=MODEL, input=EACH, tools=TOOLS)
    turn = made.id.removeprefix("resp_")
    output: list[Any] = [item.to_dict() for item in made.output]
    assert kinds(made.output)[1::2] == ["web_search_call", "code_interpreter_call", "mcp_call"]
    assert output[3] == {
        "id": f"ci_{turn}_4",
        "type": "code_interpreter_call",
        "status": "completed",
        "code": "echo 2",
        "container_id": f"cntr_{turn}",
        "outputs": [{"type": "logs", "logs": "2\n"}],
    }
    assert output[5] == {
        "id": f"mcp_{turn}_7",
        "type": "mcp_call",
        "status": "completed",
        "server_label": "simulated",
        "name": "look_up",
        "arguments": '{"number":3}',
        "output": "The answer of call 3.",
        "error": None,
    }
    whole: list[Any] = [event async for event in await sdk.responses.retrieve(made.id, stream=True)]
    assert whole[-1].response.to_dict() == made.to_dict()
    for seen in range(len(whole) - 1):
        rest = await sdk.responses.retrieve(made.id, stream=True, starting_after=seen)
        assert [event async for event in rest] == whole[seen + 1 :]
    async with sdk.responses.connect() as connection:

        async def ask(question: str, **more: Any) -> Any:
            await connection.response.create(model=MODEL, input=question, tools=TOOLS, **more)
            async for event in connection:
                assert event.type not in ("error", "response.failed"), event
                if event.type == "response.completed":
                    return event.response
            raise AssertionError("the connection has ended")

        for store in (True, False):
            last = await ask(EACH, store=store)
            assert without_ids(last.output) == without_ids(made.output)
        # The connection has kept the items of the response that is not stored.
        assert (await ask(NEXT, store=False, previous_response_id=last.id)).output_text == words(2)


@pytest.mark.proves(DIALECT, "built-in tools", PYTHON)
async def test_calls_are_sent_back_with_their_results(claude: str, sdk: Any) -> None:
    """By all items again, or by `previous_response_id`: Claude gets each call and its result as they were."""
    made = await sdk.responses.create(model=MODEL, input=EACH, tools=TOOLS)
    await sdk.responses.create(model=MODEL, previous_response_id=made.id, input=NEXT, tools=TOOLS)
    known = (await read_last_request(claude))["body"]
    items: list[Any] = [item.to_dict() for item in made.output]
    everything: list[Any] = [{"role": "user", "content": EACH}, *items, {"role": "user", "content": NEXT}]
    await sdk.responses.create(model=MODEL, input=everything, tools=TOOLS)
    repeated = (await read_last_request(claude))["body"]
    assert [block["type"] for block in known["messages"][1]["content"]].count("server_tool_use") == 2
    assert repeated["messages"] == known["messages"]
    assert repeated["container"] == known["container"]
    gone = [{**item, "id": f"{item['id']}9"} if "call" in item["type"] else item for item in items]
    raw = await sdk.responses.with_raw_response.create(model=MODEL, input=[everything[0], *gone, everything[-1]])
    assert raw.headers["tailrace-ignored"] == ("input.web_search_call, input.code_interpreter_call, input.mcp_call")
    assert [block["type"] for block in (await read_last_request(claude))["body"]["messages"][1]["content"]] == [
        "text"
    ] * 4


@pytest.mark.proves(DIALECT, "built-in tools", PYTHON)
async def test_code_goes_on_in_the_container_of_the_conversation(claude: str, sdk: Any) -> None:
    line = "#sim words=2 rate=0 server=code_execution"
    asking: Any = {"model": MODEL, "tools": [CODE]}
    made = await sdk.responses.create(input=line, conversation="s-code", **asking)
    record: Any = await sdk.get(f"/turns/{made.id.removeprefix('resp_')}", cast_to=object)
    container = record["envelope"]["delta"]["container"]["id"]
    plain = await sdk.responses.create(input=NEXT, previous_response_id=made.id, **asking)
    named: Any = {"type": "code_interpreter", "container": made.output[1].to_dict()["container_id"]}
    followed: list[Any] = [
        {"previous_response_id": made.id, **asking},
        {"previous_response_id": plain.id, **asking},
        {"conversation": "s-code", **asking},
        {"model": MODEL, "tools": [named]},
    ]
    for more in followed:
        await sdk.responses.create(input=line, **more)
        assert (await read_last_request(claude))["body"]["container"] == container
    await sdk.responses.create(input=line, **asking)
    assert "container" not in (await read_last_request(claude))["body"]
    for wrong in ("cntr_x", f"cntr_{plain.id.removeprefix('resp_')}0"):
        with pytest.raises(openai.BadRequestError, match="no response has this container"):
            await sdk.responses.create(model=MODEL, input=line, tools=[{**named, "container": wrong}])
    async with httpx2.AsyncClient(trust_env=False) as client:
        await client.post(f"{claude}/_sim/expire")
    # Claude refuses it: one clear answer, and nothing is paid.
    with pytest.raises(openai.BadRequestError, match="container"):
        await sdk.responses.create(model=MODEL, input=line, tools=[named])


async def test_a_call_that_has_failed_is_shown_as_failed(claude: str, sdk: Any) -> None:
    """The warning says that its code is not shown. A file is named in the logs."""
    events = cited_events()
    refused = {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}
    events[3]["content_block"]["content"] = refused
    made = await sdk.responses.create(model=MODEL, input=await play(claude, "refused", events), tools=[SEARCH])
    assert made.output[0].to_dict()["status"] == "failed"
    assert made.to_dict()["warnings"][0]["types"] == ["web_search_tool_result"]
    ran = {"stdout": "1\n", "stderr": "", "return_code": 0, "type": "bash_code_execution_result"}
    file = {"type": "bash_code_execution_output", "file_id": "file_01A"}
    events[1]["content_block"] |= {"name": "bash_code_execution", "input": {"command": "ls"}}
    events[3]["content_block"] = {
        "type": "bash_code_execution_tool_result",
        "tool_use_id": "srvtoolu_1",
        "content": {**ran, "content": [file]},
    }
    made = await sdk.responses.create(model=MODEL, input=await play(claude, "file", events), tools=[CODE])
    logs = [one["logs"] for one in made.output[0].to_dict()["outputs"]]
    assert logs == ["1\n", "file: file_01A"]
    assert made.to_dict()["warnings"][0]["types"] == ["bash_code_execution_tool_result"]


async def test_calls_with_one_id_and_a_result_of_3_mb(claude: str, sdk: Any) -> None:
    events = cited_events()
    long = "x" * 3_000_000
    ran = {"type": "bash_code_execution_result", "stdout": long, "stderr": "", "return_code": 0, "content": []}
    call = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "bash_code_execution", "input": {"command": "ls"}}
    result = {"type": "bash_code_execution_tool_result", "tool_use_id": "srvtoolu_1", "content": ran}
    more = [call, result]
    head, pair, rest = events[:1], events[1:5], events[5:]
    second = [
        one
        for index, block in enumerate(more, 2)
        for one in (
            {"type": "content_block_start", "index": index, "content_block": block},
            {"type": "content_block_stop", "index": index},
        )
    ]
    moved = [{**one, "index": one["index"] + 2} if "index" in one else one for one in rest]
    line = await play(claude, "large", [*head, *pair, *second, *moved])
    made = await sdk.responses.create(model=MODEL, input=line, tools=TOOLS)
    assert kinds(made.output) == ["web_search_call", "code_interpreter_call", "message"]
    assert made.output[1].to_dict()["outputs"] == [{"type": "logs", "logs": long}]
    items: list[Any] = [{"role": "user", "content": line}, *[item.to_dict() for item in made.output]]
    asked: list[Any] = [*items, {"role": "user", "content": NEXT}]
    again = await sdk.responses.create(model=MODEL, input=asked, tools=TOOLS)
    assert again.output_text == words(2)


async def test_an_mcp_server_that_refuses_its_token(claude: str, sdk: Any) -> None:
    """One clear answer without the token, and no second request."""
    before = await count_requests(claude)
    with pytest.raises(openai.BadRequestError, match="Invalid authorization token for MCP server 'simulated'"):
        await sdk.responses.create(model=MODEL, input=EACH, tools=[MCP | {"authorization": "refused"}])
    # Refused requests are no calls: they are free.
    assert await count_requests(claude) == (before[0], before[1] + 1)


async def count_requests(claude: str) -> tuple[int, int]:
    """Returns how many calls the simulated Claude has answered, and how many requests it has refused."""
    async with httpx2.AsyncClient(trust_env=False) as client:
        stats = (await client.get(f"{claude}/_sim/stats")).json()
    return stats["calls"], sum(stats["refused"].values())


async def test_the_token_of_an_mcp_server_is_only_in_the_log(tmp_path: Path) -> None:
    """It is in no record, no export, no database and no line of a process, also if the server refuses it."""
    async with System(tmp_path) as system:
        await system.start()
        gateway = system.clients[0]
        body = {"model": MODEL, "input": EACH, "conversation": "s-mcp", "tools": [MCP]}
        made = await gateway.post("/v1/responses", json=body)
        assert made.json()["status"] == "completed"
        wrong = {**body, "tools": [{**MCP, "headers": {"Authorization": f"Bearer {TOKEN}"}}]}
        shown = [made.text, (await gateway.post("/v1/responses", json=wrong)).text]
        await system.wait_until_settled()
        response, turn = made.json()["id"], made.headers["tailrace-turn"]
        dialects = [f"/v1/turns/{turn}/events?dialect={name}" for name in ("tailrace", "anthropic", "openai-responses")]
        records = ["/v1/turns", f"/v1/turns/{turn}", "/v1/sessions/s-mcp", "/v1/sessions/s-mcp/turns"]
        items = [f"/v1/responses/{response}", f"/v1/responses/{response}/input_items"]
        for path in (*dialects, *records, *items):
            read = await gateway.get(path)
            assert read.status_code == 200, path
            shown.append(read.text)
        command = [sys.executable, "-m", "tailrace", "export", "--all", "--url", str(gateway.base_url)]
        shown.append(await node.command(command, {}, tmp_path))
        assert turn in shown[-1]
        assert [text for text in shown if TOKEN in text] == []
        # The blocks of a stream's messages.
        assert {path.suffix for path in files_with(tmp_path, TOKEN)} == {".blk"}


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@on_shared_loop
@pytest.mark.rule("R119")
@pytest.mark.parametrize("results", [1, 2, 3])
async def test_no_search_is_made_again_when_its_generator_is_killed(takeover: Takeover, results: int) -> None:
    """After each result: the client has one stream with the items of a whole answer, and stored results are kept.

    A call whose result was on its way is there as failed, too.
    """
    before, tag = await takeover.executions(), f"k{results}-"
    asked: Any = {"model": MODEL, "tools": TOOLS}
    asked["input"] = f"#sim words=9 rate=20 server=web_search,bash_code_execution,mcp tag={tag}"

    async def read() -> Any:
        async with sdk_of(takeover.gateway.url) as sdk, sdk.responses.stream(**asked) as stream:
            return await stream.get_final_response()

    reading = asyncio.create_task(read())
    async with takeover.run_and_kill_after(results, containing=b"_tool_result"):
        made = await reading
    assert made.output_text == words(9, tag)
    whole = [item.type for item in made.output if item.type != "message" and item.status == "completed"]
    assert whole == ["web_search_call", "code_interpreter_call", "mcp_call"]
    after = await takeover.executions()
    executed = {call.rpartition(".")[2]: after[call] for call in after.keys() - before.keys()}
    assert sorted(executed) == ["1", "2", "3"]
    assert [len(executed[str(number)]) for number in range(1, results + 1)] == [1] * results
    record = (await takeover.gateway.client.get(f"/v1/turns/{made.id.removeprefix('resp_')}")).json()
    stored = {block["tool_use_id"] for block in record["content"] if is_real_result(block)}
    assert stored == {ids[-1] for ids in executed.values()}


@pytest.mark.proves(DIALECT, "built-in tools", "openai-agents (Python)")
async def test_the_agents_sdk_in_python(claude: str, gateway: Gateway) -> None:
    """`WebSearchTool`, `CodeInterpreterTool` and `HostedMCPTool`: the final output is the whole text."""
    cited = await play(claude, "agents", cited_events())
    for mode in ("run", "stream"):
        shown = list(map(json.loads, await answers(gateway.url, "openai-agents", mode, EACH, mode, cited)))
        assert [one["calls"] for one in shown] == [
            ["web_search_call", "code_interpreter_call", "mcp_call"],
            ["web_search_call"],
        ]
        assert shown[1]["output"] == CITED_TEXT


@pytest.mark.proves(DIALECT, "built-in tools", "@openai/agents")
async def test_the_agents_sdk_in_node(claude: str, gateway: Gateway) -> None:
    cited = await play(claude, "agents-js", cited_events())
    shown = await node.run("openai-agents-tools.mjs", KEY, gateway.url, EACH, cited)
    assert [one["calls"] for one in shown] == [
        ["web_search_call", "code_interpreter_call", "mcp_call"],
        ["web_search_call"],
    ]
    assert shown[1]["output"] == CITED_TEXT


@pytest.mark.proves(DIALECT, "built-in tools", "openai (Node)")
async def test_the_sdk_in_node(gateway: Gateway) -> None:
    """Its stream helper accumulates the items, after a cut at each event, too."""
    (shown,) = await node.run("openai-builtin-tools.mjs", KEY, gateway.url, EACH)
    assert shown["types"][1::2] == ["web_search_call", "code_interpreter_call", "mcp_call"]
    assert shown["text"] == words(8)
    assert shown["resumed"] == shown["events"] > 40
