"""Helpers of the tests with OpenAI's Python SDK."""

from collections.abc import AsyncIterable
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY

MODEL = "claude-haiku-5-5"
LINE = "#sim words=40 rate=0"
SLOW = "#sim words=40 rate=100"
TEXT = words(40)
# How the SDK fails when the connection breaks.
CUT = (openai.APIConnectionError, httpx2.TransportError)


def sdk_of(url: str, **given: Any) -> AsyncOpenAI:
    """Returns the SDK with the gateway as its base URL."""
    return AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY, **given)


def user_message(line: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": line}]


def turn_of(completion_id: str) -> str:
    return completion_id.removeprefix("chatcmpl-")


def cursor_of(chunk: ChatCompletionChunk) -> int | None:
    return (chunk.model_extra or {}).get("cursor")


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def complete_entries(received: list[ChatCompletionChunk]) -> tuple[list[ChatCompletionChunk], int]:
    """Returns the chunks of complete entries, and the cursor after them."""
    last = max((n for n, chunk in enumerate(received) if cursor_of(chunk) is not None), default=-1)
    return received[: last + 1], cursor_of(received[last]) or 0 if received else 0


async def resume_turn(sdk: AsyncOpenAI, turn: str, cursor: int = 0) -> AsyncStream[ChatCompletionChunk]:
    """Resumes the turn after the cursor, at a route that the SDK has no method for."""
    return await sdk.get(
        f"/turns/{turn}/events",
        options={"params": {"dialect": "openai-chat", "after": cursor}},
        cast_to=ChatCompletionChunk,
        stream=True,
        stream_cls=AsyncStream[ChatCompletionChunk],
    )


async def collect(stream: AsyncIterable[Any], received: list[Any]) -> None:
    """Appends what comes, also before the connection breaks."""
    async for one in stream:
        received.append(one)  # noqa: PERF401  # `extend` keeps nothing of a stream that breaks


def event_text(events: list[Any]) -> str:
    """Returns the text in events of a response."""
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")
