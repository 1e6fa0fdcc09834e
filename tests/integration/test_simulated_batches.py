"""The simulated Claude's Message Batches, as the real SDK sees them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import httpx2
import msgspec
import pytest

from tailrace.deploy.simulated_claude.message_batches import MessageBatch, Request, Result
from tailrace.deploy.simulated_claude.server import serving
from tests.harness.generator_in_loop import stats, words
from tests.harness.until import until


@pytest.fixture
async def claude() -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with serving() as url, anthropic.AsyncAnthropic(base_url=url, api_key="sk-any", max_retries=0) as client:
        yield client


def asking(name: str, line: str, **more: Any) -> Any:
    message = {"role": "user", "content": f"#sim {line}"}
    return {"custom_id": name, "params": {"model": "claude-haiku-5-5", "max_tokens": 99, "messages": [message], **more}}


async def results(claude: anthropic.AsyncAnthropic, name: str) -> dict[str, Any]:
    """By custom_id, once the batch has ended."""

    async def has_ended() -> bool:
        return (await claude.messages.batches.retrieve(name)).processing_status == "ended"

    await until(has_ended)
    return {one.custom_id: one.result async for one in await claude.messages.batches.results(name)}


async def test_a_batch_is_made_and_told_as_in_the_api(claude: anthropic.AsyncAnthropic) -> None:
    """Its counts only when it has ended; each answer at the batch's tier."""
    made = await claude.messages.batches.create(
        requests=[asking("one", "words=2 rate=0 wait=0.1"), asking("two", "words=3 rate=0 tag=x")]
    )
    assert (made.type, made.processing_status, made.results_url) == ("message_batch", "in_progress", None)
    assert (made.request_counts.processing, made.request_counts.succeeded) == (2, 0)
    told = await results(claude, made.id)
    assert {name: one.message.content[0].text for name, one in told.items()} == {"one": words(2), "two": words(3, "x")}
    assert {one.message.usage.service_tier for one in told.values()} == {"batch"}
    ended = await claude.messages.batches.retrieve(made.id)
    assert (ended.request_counts.processing, ended.request_counts.succeeded) == (0, 2)
    assert ended.ended_at is not None
    assert (await stats(str(claude.base_url)))["calls"] == 2


def test_a_timer_that_comes_early_cancels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop rounds to whole milliseconds: the longest answer of a batch would be cancelled by nobody."""

    def early() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        later = loop.call_later
        monkeypatch.setattr(loop, "call_later", lambda delay, *args: later(delay / 2, *args))
        return loop

    async def kinds() -> set[str]:
        ended = asyncio.Event()

        def processed(request: Request) -> Result:
            ended.set()
            return Result(request.custom_id, "succeeded")

        asked = [Request(one["custom_id"], msgspec.Raw(msgspec.json.encode(one["params"]))) for one in both]
        batch = MessageBatch(1, asked, processed)
        await ended.wait()
        return {result.kind for result in batch.results}

    both = [asking("short", "words=1 rate=0"), asking("long", "words=1 rate=0 wait=0.1")]
    with asyncio.Runner(loop_factory=early) as runner:
        assert runner.run(kinds()) == {"succeeded"}


async def test_what_is_wrong_with_a_request_is_its_result(claude: anthropic.AsyncAnthropic) -> None:
    """The creation is not refused for it."""
    made = await claude.messages.batches.create(
        requests=[
            asking("good", "words=1 rate=0"),
            asking("stream", "words=1 rate=0", stream=True),
            asking("model", "words=1 rate=0", model="none"),
            asking("failed", "words=1 rate=0 fault=500"),
        ]
    )
    told = await results(claude, made.id)
    assert told["good"].type == "succeeded"
    assert {name: one.error.error.type for name, one in told.items() if one.type == "errored"} == {
        "stream": "invalid_request_error",
        "model": "not_found_error",
        "failed": "api_error",
    }


async def test_cancelling_and_a_day_end_what_was_not_answered(claude: anthropic.AsyncAnthropic) -> None:
    """What was answered by then stays; nothing else was called."""
    api = claude.messages.batches
    cancelled = await api.create(requests=[asking("now", "words=1 rate=0"), asking("late", "words=1 wait=3600")])
    assert (await api.cancel(cancelled.id)).processing_status == "canceling"
    told = await results(claude, cancelled.id)
    assert {name: one.type for name, one in told.items()} == {"now": "succeeded", "late": "canceled"}
    with pytest.raises(anthropic.BadRequestError):
        await api.cancel(cancelled.id)
    expired = await api.create(requests=[asking("late", "words=1 wait=3600")])
    async with httpx2.AsyncClient(base_url=claude.base_url, trust_env=False) as client:
        await client.post("/_sim/expire")
    assert (await results(claude, expired.id))["late"].type == "expired"
    assert (await stats(str(claude.base_url)))["calls"] == 1


async def test_batches_are_listed_newest_first_and_deleted(claude: anthropic.AsyncAnthropic) -> None:
    """Page by page; one that runs is not deleted."""
    api = claude.messages.batches
    made = [(await api.create(requests=[asking("a", "words=1 rate=0")])).id for _ in range(5)]
    assert [one.id async for one in api.list(limit=2)] == made[::-1]
    await results(claude, made[0])
    assert (await api.delete(made[0])).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await api.retrieve(made[0])
    running = await api.create(requests=[asking("a", "words=1 wait=3600")])
    with pytest.raises(anthropic.BadRequestError):
        await api.delete(running.id)


async def test_creations_are_refused_and_broken_off(claude: anthropic.AsyncAnthropic) -> None:
    """A rate limit makes none; a connection that is cut behind its creation leaves one that nobody was told of."""
    api = claude.messages.batches
    limited = [asking("a", "words=1 rate=0 fault=429x1")]
    with pytest.raises(anthropic.RateLimitError):
        await api.create(requests=limited)
    assert [one async for one in api.list()] == []
    await api.create(requests=limited)
    with pytest.raises((httpx2.HTTPError, anthropic.APIConnectionError)):
        await api.create(requests=[asking("a", "words=1 rate=0 fault=cutx1")])
    assert (await stats(str(claude.base_url)))["batches"] == 2
    for wrong in ([], [asking("a/b", "")], [asking("a", ""), asking("a", "")]):
        with pytest.raises(anthropic.BadRequestError):
            await api.create(requests=wrong)
