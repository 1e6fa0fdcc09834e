"""tailrace.Client and tailrace.AsyncClient at a real gateway, besides what the client matrix tests."""

import asyncio
from collections.abc import AsyncIterator

import httpx2
import pytest

from tailrace import AsyncClient, Client, TailraceError
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False) as http:
        yield http


async def test_to_stop_reading_does_not_cancel_and_lists_have_the_turn(
    gateway: Gateway, http: httpx2.AsyncClient
) -> None:
    client = AsyncClient(gateway.url, KEY, http=http)
    answer = await client.ask("#sim words=4000 rate=100")
    async with answer:
        async for event in answer:
            if event.type == "delta":
                break
    with pytest.raises(TailraceError, match="was closed"):
        await answer.done()
    assert [turn["turn"] async for turn in client.turns()] == [answer.turn]
    rest = await client.resume(answer.turn, after=answer.cursor)
    assert (await client.cancel(answer.turn))["outcome"] == "cancelled"
    end, turn = await rest.done(), await client.turn(answer.turn)
    assert (end.outcome, answer.text + end.text) == ("cancelled", turn["text"])
    assert answer.session is not None
    assert [one["turn"] async for one in client.turns(answer.session)] == [answer.turn]
    assert [one["session"] async for one in client.sessions()] == [answer.session]


async def test_no_proxy_is_used_for_this_machine(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's libraries read variables in lower case first."""
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", ".corp")
    with Client(gateway.url, KEY) as client:
        assert await asyncio.to_thread(client.request, "GET", "/health")
    async with AsyncClient(gateway.url, KEY) as asynchronous:
        assert await asynchronous.request("GET", "/health")


async def test_threads_share_one_client(gateway: Gateway) -> None:
    """As the threads of a server do: each gets its own answer."""

    def ask(tag: str) -> str:
        return client.ask(f"#sim words=20 rate=200 tag={tag}").done().text

    with Client(gateway.url, KEY) as client:
        tags = [f"t{number}_" for number in range(8)]
        texts = await asyncio.gather(*(asyncio.to_thread(ask, tag) for tag in tags))
    assert texts == [words(20, tag) for tag in tags]


async def test_to_close_an_answer_ends_its_reader_in_another_task(gateway: Gateway, http: httpx2.AsyncClient) -> None:
    """Without another try: its connection is not lost."""
    states: list[str] = []
    client = AsyncClient(gateway.url, KEY, http=http)
    answer = await client.ask("#sim words=4000 rate=100", on_state=states.append)
    reading = asyncio.create_task(answer.done())
    await until(lambda: answer.text)
    await answer.close()
    with pytest.raises(TailraceError, match="was closed"):
        await reading
    assert states == ["live", "ended"]
    await client.cancel(answer.turn)


async def test_a_full_gateway_is_waited_for_and_a_refused_key_is_not(
    system: System, gateway: Gateway, new_gateway: NewGateway, http: httpx2.AsyncClient
) -> None:
    """429 while the other turn of the key runs."""
    full = await new_gateway(system.nats_url, limits_key="running=1")
    client = AsyncClient(full.url, KEY, http=http)
    first = await client.ask("#sim words=4000 rate=50")
    waiting = asyncio.Event()
    asking = asyncio.create_task(client.ask("#sim words=3 rate=0", on_state=lambda _: waiting.set()))
    await waiting.wait()
    assert not asking.done()
    await first.cancel()
    assert (await (await asking).done()).text == words(3)
    with pytest.raises(TailraceError) as refused:
        await AsyncClient(full.url, "a wrong key", http=http).ask("Hi.")
    assert (refused.value.status, refused.value.code) == (401, "credential_invalid")
    await first.close()
