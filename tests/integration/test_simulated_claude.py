"""The simulated Claude over HTTP: the real SDK believes it, faults happen on the wire, and what happened is counted."""

import asyncio
import re
import signal
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

from tailrace.deploy.simulated_claude.account import Account, AccountReport, Call
from tailrace.deploy.simulated_claude.server import serving
from tests.harness.until import until

TEXT = re.compile(r'"text":"([^"]+)"')
HEADERS = {"authorization": "Bearer sk-anything", "anthropic-version": "2026-10-21"}


@pytest.fixture
async def claude() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a simulated Claude that nobody else uses."""
    async with serving() as url, httpx2.AsyncClient(base_url=url, headers=HEADERS, timeout=10) as client:
        yield client


def ask(line: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "claude-sonnet-5-5",
        "max_tokens": 100_000,
        "stream": True,
        "messages": [{"role": "user", "content": line}],
        **more,
    }


async def words(claude: httpx2.AsyncClient, line: str) -> list[str]:
    """The text deltas that came; a connection that breaks ends them."""
    received: list[str] = []
    try:
        async with claude.stream("POST", "/v1/messages", json=ask(line)) as response:
            async for data in response.aiter_lines():
                received += TEXT.findall(data)
    except httpx2.RemoteProtocolError:
        received.append("<cut>")
    return received


async def stats_when(claude: httpx2.AsyncClient, **expected: int) -> dict[str, Any]:
    """The stats as soon as they hold `expected`; fails after a second with what they held last."""
    seen: dict[str, Any] = {}
    try:
        async with asyncio.timeout(1):
            while {name: seen.get(name) for name in expected} != expected:
                seen = (await claude.get("/_sim/stats")).json()
    except TimeoutError:
        pytest.fail(f"expected {expected}, last seen {seen}")
    return seen


async def test_the_sdk_takes_it_for_anthropic(claude: httpx2.AsyncClient) -> None:
    """The SDK itself is always in the path, so its own reading of a stream must work."""
    async with anthropic.AsyncAnthropic(api_key="sk-any", base_url=str(claude.base_url), max_retries=0) as sdk:
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


async def test_a_stream_has_the_headers_of_the_api(claude: httpx2.AsyncClient) -> None:
    """A client finds its request id and its limits where Anthropic puts them."""
    async with claude.stream("POST", "/v1/messages", json=ask("#sim words=1")) as response:
        await response.aread()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["request-id"].startswith("req_")
    assert response.headers["anthropic-ratelimit-requests-remaining"] == "4000"


@pytest.mark.parametrize(
    ("fault", "status", "type_", "header"),
    [
        ("429 retry_after=7", 429, "rate_limit_error", ("retry-after", "7")),
        ("529", 529, "overloaded_error", ("retry-after", None)),
        ("500", 500, "api_error", ("anthropic-ratelimit-requests-limit", "4000")),
    ],
)
async def test_a_status_fault_is_an_http_error(
    claude: httpx2.AsyncClient, fault: str, status: int, type_: str, header: tuple[str, str | None]
) -> None:
    """At @0 the error comes before any stream, with the body and the headers of the real one."""
    response = await claude.post("/v1/messages", json=ask(f"#sim fault={fault}"))
    assert (response.status_code, response.headers.get(header[0])) == (status, header[1])
    body = response.json()
    assert (body["type"], body["error"]["type"]) == ("error", type_)
    assert body["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"x-api-key": "bad-key"}, 401),
        ({"authorization": "Bearer bad-key"}, 401),
        ({"x-api-key": "sk"}, 200),
        ({"authorization": "Bearer sk"}, 200),
    ],
)
async def test_any_key_will_do_but_none_and_the_bad_one(
    claude: httpx2.AsyncClient, headers: dict[str, str], status: int
) -> None:
    """Old and new clients put their key in different places; without one the API refuses."""
    del claude.headers["authorization"]
    assert (await claude.get("/v1/models", headers=headers)).status_code == status


async def test_what_is_not_there_is_an_error_of_the_api(claude: httpx2.AsyncClient) -> None:
    """An unknown path, method or model gets a JSON body that clients can read."""
    for path in ("/v1/nothing", "/v1/models/claude-unknown"):
        response = await claude.get(path)
        assert (response.status_code, response.json()["error"]["type"]) == (404, "not_found_error")


async def test_a_cut_drops_the_connection_after_its_delta(claude: httpx2.AsyncClient) -> None:
    """The client gets exactly N deltas, and then no end of the response."""
    assert await words(claude, "#sim words=9 rate=0 fault=cut@3") == ["w000000", " w000001", " w000002", "<cut>"]


async def test_an_eof_ends_cleanly_without_message_stop(claude: httpx2.AsyncClient) -> None:
    """The nastiest one: nothing at the level of HTTP shows it."""
    response = await claude.post("/v1/messages", json=ask("#sim words=9 rate=0 fault=eof@3"))
    assert (response.status_code, "message_stop" in response.text) == (200, False)


async def test_html_is_a_page_with_status_200(claude: httpx2.AsyncClient) -> None:
    """A captive portal answers everything, and gladly."""
    response = await claude.post("/v1/messages", json=ask("#sim fault=html"))
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")


async def test_a_fault_of_the_first_calls_only_is_over_after_them(claude: httpx2.AsyncClient) -> None:
    """`xM`: calls of one turn are counted, and those of another turn are not."""
    for line in ("#sim words=1 fault=529@0x2", "#sim words=1 tag=other fault=529@0x2"):
        statuses = [(await claude.post("/v1/messages", json=ask(line))).status_code for _ in range(3)]
        assert statuses == [529, 529, 200]
    stats = await stats_when(claude, calls=6)
    assert (stats["by_fault"], list(stats["turns"].values())) == ({"529": 4}, [3, 3])


async def test_a_continuation_gives_the_rest_and_is_counted(claude: httpx2.AsyncClient) -> None:
    """Asked to go on, exactly the rest; asked to go on with something else, all of it and a count."""
    question = {"role": "user", "content": "#sim words=4 rate=0"}
    go_on = {"role": "user", "content": "Your previous response was interrupted and ended with “…”. Continue."}
    for partial, expected in (("w000000 w00", "0001 w000002 w000003"), ("x", "w000000 w000001 w000002 w000003")):
        messages = [question, {"role": "assistant", "content": partial}, go_on]
        response = await claude.post("/v1/messages", json=ask("", stream=False, messages=messages))
        assert response.json()["content"] == [{"type": "text", "text": expected}]
    stats = await stats_when(claude, continuations=2)
    assert (stats["continuations_mismatched"], list(stats["turns"].values())) == (1, [2])


@pytest.mark.parametrize("line", ["#sim words=9 fault=stall@2", "#sim words=9 wait=60", "#sim words=900000 rate=0"])
async def test_a_client_that_leaves_is_noticed_at_once(claude: httpx2.AsyncClient, line: str) -> None:
    """Whatever the stream waits for (nothing, its first delta, a reader that does not read), no more is paid."""
    async with (
        claude.stream("POST", "/v1/messages", json=ask(line)) as response,
        aclosing(response.aiter_raw()) as body,
    ):
        await anext(body)
        await stats_when(claude, streams_open=1, streams_aborted=0)
    stats = await stats_when(claude, streams_open=0, streams_aborted=1)
    assert stats["output_tokens"] < 900_000


async def test_deltas_come_at_their_rate(claude: httpx2.AsyncClient) -> None:
    """`rate` is kept over the whole answer: what one delta is late the next ones make up for."""
    now = asyncio.get_running_loop().time
    began = now()
    assert len(await words(claude, "#sim words=1001 rate=2000")) == 1001
    assert (
        0.5 <= now() - began < 1.0
    )  # a sleep of half a millisecond takes more than one: a thousand take over a second


async def test_the_command_prints_its_address_and_ends_at_once_when_told() -> None:
    """`python -m tailrace.deploy.simulated_claude`: one line when it listens; open streams do not keep it alive."""
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
            await asyncio.wait_for(process.wait(), 5)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_its_account_tells_of_every_call(claude: httpx2.AsyncClient) -> None:
    """Which question, from which delta on, when it began and closed, and how: by what is checked what was paid for."""
    before = monotonic_ns()
    for line in ("#sim words=3 rate=0", "#sim words=9 tag=x rate=0 fault=cut@3", "#sim words=1 tag=y fault=529"):
        await words(claude, line)
    whole = ask("", stream=False, messages=[{"role": "user", "content": "Hello.\n#sim words=2 tag=z rate=0"}])
    await claude.post("/v1/messages", json=whole)
    stalling = ask("#sim words=5 tag=s rate=0 fault=stall@2")
    async with (
        claude.stream("POST", "/v1/messages", json=stalling) as response,
        aclosing(response.aiter_raw()) as body,
    ):
        await anext(body)
        stalled = await until(lambda: account(claude, lambda call: call.over != "open"))
        assert stalled is not None
        assert stalled.calls[-1].closed is None
    told = await until(lambda: account(claude, lambda call: call.closed is not None))
    assert told is not None
    assert [(call.number, call.question, call.over, call.deltas) for call in told.calls] == [
        (1, "#sim words=3 rate=0", "whole", 3),
        (2, "#sim words=9 tag=x rate=0 fault=cut@3", "cut", 3),
        (3, "#sim words=1 tag=y fault=529", "529", 0),
        (4, "#sim words=2 tag=z rate=0", "whole", 2),
        (5, "#sim words=5 tag=s rate=0 fault=stall@2", "stall", 2),
    ]
    times = [at or 0 for call in told.calls for at in (call.begun, call.closed)]
    assert times == sorted(times)
    assert before < times[0] < times[-1] < monotonic_ns()
    assert len({call.key for call in told.calls}) == 5
    await claude.post("/_sim/reset")
    assert await account(claude, lambda _: True) == AccountReport([], 0)


async def test_its_account_says_that_a_client_left_because_of_what_nobody_can_read(claude: httpx2.AsyncClient) -> None:
    """Whose fault it was: the model is not to be told that it was the client's."""
    question = ask("#sim words=900 rate=20 fault=garbage@1")
    async with claude.stream("POST", "/v1/messages", json=question) as response:
        heard = b""
        async for received in response.aiter_raw():
            heard += received
            if b'"ind\n\n' in heard:
                break
    told = await until(lambda: account(claude, lambda call: call.closed is not None))
    assert told is not None
    assert [call.over for call in told.calls] == ["garbage"]


async def test_its_account_says_where_a_call_went_on_and_that_its_client_left(claude: httpx2.AsyncClient) -> None:
    """Calls of one turn have one key, whatever is there of its answer; the second says from where it goes on."""
    question = {"role": "user", "content": "#sim words=900 rate=20"}
    partial = {"role": "assistant", "content": "w000000 w000001"}
    go_on = {"role": "user", "content": "Your previous response was interrupted and ended with “…”. Continue."}
    for messages in ([question], [question, partial, go_on]):
        async with claude.stream("POST", "/v1/messages", json=ask("", messages=messages)) as response:
            await anext(aiter(response.aiter_raw()))
    told = await until(lambda: account(claude, lambda call: call.closed is not None))
    assert told is not None
    first, second = told.calls
    assert first.key == second.key
    assert (first.start, second.start) == (0, 2)
    assert [call.over for call in told.calls] == ["aborted", "aborted"]


def test_an_account_that_is_too_long_says_how_much_it_has_forgotten() -> None:
    """Who judges by it has to know that it is not all of it."""
    kept = Account(deque(maxlen=2))
    for _ in range(5):
        kept.begin("key", "question", 0)
    assert ([call.number for call in kept.calls], kept.forgotten) == ([4, 5], 3)


async def account(claude: httpx2.AsyncClient, is_there: Callable[[Call], bool]) -> AccountReport | None:
    """What it tells of its calls, once all of them are as they are to be."""
    told = msgspec.json.decode((await claude.get("/_sim/calls")).content, type=AccountReport)
    return told if all(map(is_there, told.calls)) else None
