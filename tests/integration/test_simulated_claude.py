"""The simulated Claude over HTTP: Anthropic's SDK works with it, its faults happen, and it counts calls correctly."""

import asyncio
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from time import monotonic_ns
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest

from tailrace.deploy.simulated_claude.__main__ import main
from tailrace.deploy.simulated_claude.account import Account, AccountReport, Call
from tailrace.deploy.simulated_claude.message_batches import MessageBatch, Request, Result
from tailrace.deploy.simulated_claude.server import EmbeddedServer, run_embedded, run_simulated_claude
from tests.harness.until import until

TEXT = re.compile(r'"text":"([^"]+)"')
HEADERS = {"authorization": "Bearer sk-anything", "anthropic-version": "2026-10-21"}
CONTINUE = {"role": "user", "content": "Your previous response was interrupted and ended with “…”. Continue."}


@pytest.fixture
async def client(own_claude: str) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(base_url=own_claude, headers=HEADERS, timeout=10) as client:
        yield client


@pytest.fixture
async def sdk(own_claude: str) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=own_claude, api_key="sk-any") as sdk:
        yield sdk


def ask(line: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": line}]
    return {"model": "claude-sonnet-5-5", "max_tokens": 100_000, "stream": True, "messages": messages, **more}


async def deltas(client: httpx2.AsyncClient, line: str) -> list[str]:
    """Returns the text deltas received; a connection that breaks ends them with `<cut>`."""
    received: list[str] = []
    try:
        async with client.stream("POST", "/v1/messages", json=ask(line)) as response:
            async for data in response.aiter_lines():
                received += TEXT.findall(data)
    except httpx2.RemoteProtocolError:
        received.append("<cut>")
    return received


async def until_calls(client: httpx2.AsyncClient, is_done: Callable[[Call], bool]) -> AccountReport:
    """Waits until all calls fulfil a condition; returns the account."""

    async def are_reached() -> AccountReport | None:
        report = msgspec.json.decode((await client.get("/_sim/calls")).content, type=AccountReport)
        return report if all(map(is_done, report.calls)) else None

    report = await until(are_reached)
    assert report is not None
    return report


async def test_anthropics_sdk_reads_streams_messages_models_and_counts(sdk: anthropic.AsyncAnthropic) -> None:
    request: Any = ask("#sim words=3 thinking=2 tool=look rate=0") | {"max_tokens": 1000}
    del request["stream"]
    async with sdk.messages.stream(**request) as stream:
        streamed = await stream.get_final_message()
    created = await sdk.messages.create(**request)
    models = [model.id async for model in sdk.models.list()]
    counted = await sdk.messages.count_tokens(model=request["model"], messages=request["messages"])
    assert [block.type for block in streamed.content] == ["thinking", "text", "tool_use"]
    same = {"content", "model", "stop_reason", "usage"}
    assert streamed.model_dump(include=same) == created.model_dump(include=same)
    assert (request["model"] in models, counted.input_tokens) == (True, 5)


async def test_the_command_prints_its_address_and_stops_at_sigterm() -> None:
    """Open streams do not keep it running."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tailrace.deploy.simulated_claude", stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        url = line.removeprefix("simulated Claude ").strip()
        async with (
            httpx2.AsyncClient(base_url=url, headers=HEADERS) as client,
            client.stream("POST", "/v1/messages", json=ask("#sim fault=stall@1")) as response,
            aclosing(response.aiter_raw()) as body,
        ):
            await anext(body)
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), 10)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_account_lists_every_call(client: httpx2.AsyncClient) -> None:
    """Its turn, its first delta, when it began and was closed, and how it ended."""
    before = monotonic_ns()
    for line in ("#sim words=3 rate=0", "#sim words=9 tag=x rate=0 fault=cut@3", "#sim words=1 tag=y fault=529"):
        await deltas(client, line)
    whole = ask("", stream=False, messages=[{"role": "user", "content": "Hello.\n#sim words=2 tag=z rate=0"}])
    await client.post("/v1/messages", json=whole)
    stalling = ask("#sim words=5 tag=s rate=0 fault=stall@2")
    async with (
        client.stream("POST", "/v1/messages", json=stalling) as response,
        aclosing(response.aiter_raw()) as body,
    ):
        await anext(body)
        stalled = await until_calls(client, lambda call: call.over != "open")
        assert stalled.calls[-1].closed is None
    report = await until_calls(client, lambda call: call.closed is not None)
    assert [(call.number, call.question, call.over, call.deltas) for call in report.calls] == [
        (1, "#sim words=3 rate=0", "whole", 3),
        (2, "#sim words=9 tag=x rate=0 fault=cut@3", "cut", 3),
        (3, "#sim words=1 tag=y fault=529", "529", 0),
        (4, "#sim words=2 tag=z rate=0", "whole", 2),
        (5, "#sim words=5 tag=s rate=0 fault=stall@2", "stall", 2),
    ]
    times = [at or 0 for call in report.calls for at in (call.begun, call.closed)]
    assert times == sorted(times)
    assert before < times[0] < times[-1] < monotonic_ns()
    assert len({call.key for call in report.calls}) == 5
    await client.post("/_sim/reset")
    assert await until_calls(client, lambda _: True) == AccountReport([], 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_stats_list_the_executions_of_server_tools(client: httpx2.AsyncClient, stream: bool) -> None:
    """A paused call is executed when its answer is sent back."""
    line = "#sim words=2 rate=0 server=mcp*2 pauses=1"
    paused = (await client.post("/v1/messages", json=ask(line) | {"stream": False})).json()
    assert paused["stop_reason"] == "pause_turn"
    messages = [{"role": "user", "content": line}, {"role": "assistant", "content": paused["content"]}]
    await client.post("/v1/messages", json=ask(line, stream=stream) | {"messages": messages})
    stats = (await client.get("/_sim/stats")).json()
    assert stats["resumptions"] == 1
    assert [(key[-2:], len(ids)) for key, ids in stats["executions"].items()] == [(".1", 1), (".2", 1)]
    assert next(iter(stats["executions"].values())) == [paused["content"][-1]["id"]]


async def test_the_account_says_which_side_ended_a_call(client: httpx2.AsyncClient) -> None:
    """A client that leaves because of garbage has not aborted; a continuation has the key of its turn and a start."""
    async with client.stream("POST", "/v1/messages", json=ask("#sim words=900 rate=20 fault=garbage@1")) as response:
        received = b""
        async for piece in response.aiter_raw():
            received += piece
            if b'"ind\n\n' in received:
                break
    question = {"role": "user", "content": "#sim words=900 rate=20"}
    partial = {"role": "assistant", "content": "w000000 w000001"}
    for messages in ([question], [question, partial, CONTINUE]):
        async with client.stream("POST", "/v1/messages", json=ask("", messages=messages)) as response:
            await anext(aiter(response.aiter_raw()))
    report = await until_calls(client, lambda call: call.closed is not None)
    assert [(call.over, call.start) for call in report.calls] == [("garbage", 0), ("aborted", 0), ("aborted", 2)]
    assert report.calls[1].key == report.calls[2].key


def test_a_long_account_counts_the_calls_that_it_has_forgotten() -> None:
    account = Account(deque(maxlen=2))
    for _ in range(5):
        account.begin("key", "question", 0)
    assert ([call.number for call in account.calls], account.forgotten) == ([4, 5], 3)


# Message Batches


def batch_input(name: str, line: str, **more: Any) -> Any:
    message = {"role": "user", "content": f"#sim {line}"}
    return {"custom_id": name, "params": {"model": "claude-haiku-5-5", "max_tokens": 99, "messages": [message], **more}}


async def results(sdk: anthropic.AsyncAnthropic, name: str) -> dict[str, Any]:
    """Waits for the end of a batch; returns its results by custom id."""

    async def has_ended() -> bool:
        return (await sdk.messages.batches.retrieve(name)).processing_status == "ended"

    await until(has_ended)
    return {one.custom_id: one.result async for one in await sdk.messages.batches.results(name)}


async def test_batches_are_listed_newest_first_and_deleted(sdk: anthropic.AsyncAnthropic) -> None:
    """In pages; a running one cannot be deleted."""
    api = sdk.messages.batches
    created = [(await api.create(requests=[batch_input("a", "words=1 rate=0")])).id for _ in range(5)]
    assert [one.id async for one in api.list(limit=2)] == created[::-1]
    await results(sdk, created[0])
    assert (await api.delete(created[0])).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await api.retrieve(created[0])
    running = await api.create(requests=[batch_input("a", "words=1 wait=3600")])
    with pytest.raises(anthropic.BadRequestError):
        await api.delete(running.id)


@pytest.mark.parametrize("wrong", [[], ["a/b"], ["a", "a"]], ids=str)
async def test_a_batch_with_invalid_custom_ids_is_refused(sdk: anthropic.AsyncAnthropic, wrong: list[str]) -> None:
    with pytest.raises(anthropic.BadRequestError):
        await sdk.messages.batches.create(requests=[batch_input(name, "") for name in wrong])


def test_a_timer_that_fires_early_cancels_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop rounds timers to whole milliseconds: the longest answer of a batch would be cancelled."""

    def early_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        call_later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda delay, *args: call_later(delay / 2, *args))
        return loop

    async def kinds() -> set[str]:
        ended = asyncio.Event()

        def process(request: Request) -> Result:
            ended.set()
            return Result(request.custom_id, "succeeded")

        requests = [Request(one["custom_id"], msgspec.Raw(msgspec.json.encode(one["params"]))) for one in both]
        batch = MessageBatch(1, requests, process)
        await ended.wait()
        return {result.kind for result in batch.results}

    both = [batch_input("short", "words=1 rate=0"), batch_input("long", "words=1 rate=0 wait=0.1")]
    with asyncio.Runner(loop_factory=early_loop) as runner:
        assert runner.run(kinds()) == {"succeeded"}


@pytest.mark.parametrize("host", ["rebound.example", "rebound.example:80"])
async def test_a_request_for_another_host_is_refused(host: str) -> None:
    async with run_simulated_claude() as url, httpx2.AsyncClient(base_url=url, trust_env=False) as client:
        assert (await client.get("/_sim/stats", headers={"host": host})).status_code == 400
        assert (await client.get("/_sim/stats")).status_code == 200


async def test_a_request_for_the_address_that_it_listens_on_is_answered() -> None:
    async with (
        run_embedded(EmbeddedServer("127.0.0.2", 0)) as url,
        httpx2.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        assert url.startswith("http://127.0.0.2:")
        assert (await client.get("/_sim/stats")).status_code == 200


async def test_calls_are_recorded_and_shown_only_if_asked_for() -> None:
    """They contain the last line of each question."""
    async with (
        run_embedded(EmbeddedServer("127.0.0.1", 0)) as url,
        httpx2.AsyncClient(base_url=url, trust_env=False) as client,
    ):
        for path in ("/_sim/calls", "/_sim/last"):
            assert (await client.get(path)).status_code == 404


def test_a_port_in_use_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as used, pytest.raises(SystemExit) as stopped:
        main(["--port", str(used.getsockname()[1])])
    printed = capsys.readouterr().err
    assert (stopped.value.code, printed.count("\n"), "is in use: stop the program" in printed) == (1, 1, True)


async def change(client: httpx2.AsyncClient, **settings: Any) -> None:
    found = await client.post("/_sim/settings", json=settings)
    assert found.json() == {"thinking": "error", "containers_from": 0, "known": []} | settings


@pytest.mark.parametrize("is_streaming", [True, False])
async def test_thinking_comes_back_only_after_the_same_prompt(
    client: httpx2.AsyncClient, sdk: anthropic.AsyncAnthropic, *, is_streaming: bool
) -> None:
    """Refused, or dropped, as the settings say. `count_tokens` follows the same rule."""
    first: Any = ask("#sim words=2 thinking=3 rate=0", system="Be brief.", max_tokens=100)
    del first["stream"]
    if is_streaming:
        async with sdk.messages.stream(**first) as stream:
            message = await stream.get_final_message()
    else:
        message = await sdk.messages.create(**first)
    content = [block.model_dump(exclude_none=True) for block in message.content]
    assert [block["type"] for block in content] == ["thinking", "text"]
    talk = [*first["messages"], {"role": "assistant", "content": content}, {"role": "user", "content": "#sim words=1"}]
    same = first | {"messages": talk}
    assert (await client.post("/v1/messages", json=same)).status_code == 200
    other = same | {"system": "Be long."}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        refused = await client.post(path, json=other)
        assert refused.status_code == 400
        assert "bound to a different conversation" in refused.json()["error"]["message"]
    await change(client, thinking="drop")
    dropped = await client.post("/v1/messages", json=other)
    assert "input_transformations" not in dropped.json()
    beta = {"anthropic-beta": "thinking-binding-controls-2026-08-01"}
    dropped = await client.post("/v1/messages", json=other, headers=beta)
    entry = {"type": "thinking_dropped", "path": "messages.1.content.0", "reason": "prefix_binding_mismatch"}
    assert dropped.json()["input_transformations"] == [entry]
    started = await client.post("/v1/messages", json=other | {"stream": True}, headers=beta)
    assert msgspec.json.encode({"input_transformations": [entry]})[1:-1].decode() in started.text


async def test_a_batch_drops_thinking_after_a_change(client: httpx2.AsyncClient) -> None:
    """Unless the request says `error`; other rules are errors of the one request."""
    question = {"role": "user", "content": "#sim words=1 thinking=1 rate=0"}
    body = {"model": "claude-sonnet-5-5", "max_tokens": 9, "messages": [question]}
    content = (await client.post("/v1/messages", json=body)).json()["content"]
    talk = [question, {"role": "assistant", "content": content}, question]
    changed = body | {"messages": talk, "system": "Be brief."}
    wrong = body | {"metadata": {"user_id": "ann@example.com"}}
    requests = [{"custom_id": name, "params": params} for name, params in (("changed", changed), ("wrong", wrong))]
    batch = (await client.post("/v1/messages/batches", json={"requests": requests})).json()

    async def is_ended() -> bool:
        return bool((await client.get(f"/v1/messages/batches/{batch['id']}")).json()["ended_at"])

    await until(is_ended)
    lines = (await client.get(f"/v1/messages/batches/{batch['id']}/results")).text.splitlines()
    results = {one["custom_id"]: one["result"] for one in map(msgspec.json.decode, lines)}
    assert results["changed"]["type"] == "succeeded"
    assert "user_id" in results["wrong"]["error"]["error"]["message"]


async def test_containers_expire_with_the_batches(client: httpx2.AsyncClient) -> None:
    """POST /_sim/expire is the end of the day for both."""
    body = ask("#sim words=2 server=code_execution rate=0") | {"stream": False}
    name = (await client.post("/v1/messages", json=body)).json()["container"]["id"]
    again = body | {"container": name}
    assert (await client.post("/v1/messages", json=again)).status_code == 200
    await client.post("/_sim/expire")
    refused = await client.post("/v1/messages", json=again)
    assert refused.json()["error"]["message"] == f"container: Container {name} has expired"
    assert (await client.post("/v1/messages", json=body)).json()["container"]["id"] != name


@pytest.mark.parametrize(
    ("fault", "status", "type_", "message"),
    [
        ("credit", 400, "invalid_request_error", "Your credit balance is too low"),
        ("401", 401, "authentication_error", "invalid x-api-key"),
        ("403", 403, "permission_error", "Permission denied"),
    ],
)
async def test_a_refused_account_or_key_has_the_error_of_the_api(
    client: httpx2.AsyncClient, fault: str, status: int, type_: str, message: str
) -> None:
    body = ask(f"#sim words=1 fault={fault}x1 rate=0")
    refused = await client.post("/v1/messages", json=body)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"]) == (status, type_)
    assert error["message"].startswith(message)
    assert (await client.post("/v1/messages", json=body)).status_code == 200


async def test_settings_are_checked(client: httpx2.AsyncClient) -> None:
    wrongs: list[Any] = [{"thinking": "maybe"}, {"of_tomorrow": 1}, []]
    for wrong in wrongs:
        assert (await client.post("/_sim/settings", json=wrong)).status_code == 400
