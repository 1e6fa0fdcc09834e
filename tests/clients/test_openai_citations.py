"""Claude's citations as annotations in both of OpenAI's protocols, with the Python SDK."""

from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.clients.openai_chat import MODEL, user_message
from tests.harness.generator_in_loop import words

PYTHON = "openai (Python)"
# A citation of a document without a name, of a page, and of a file.
LINE = "#sim words=3 rate=0 cites=3"
PLACE = {"start_index": 0, "end_index": len(words(3))}
PAGE = {"url": "https://page.example/1", "title": "Page 1", **PLACE}
FILE = {"type": "file_citation", "file_id": "file_sim2", "filename": "2.pdf", "index": len(words(3))}
ADDED = "response.output_text.annotation.added"


@pytest.mark.proves("openai-chat", "citations", PYTHON)
async def test_chat_completion_annotates_web_pages(sdk: AsyncOpenAI) -> None:
    """In the accumulator as in the JSON body."""
    cited = [{"type": "url_citation", "url_citation": PAGE}]
    whole = await sdk.chat.completions.create(model=MODEL, messages=user_message(LINE))
    async with sdk.chat.completions.stream(model=MODEL, messages=user_message(LINE)) as stream:
        final = await stream.get_final_completion()
    for message in (whole.choices[0].message, final.choices[0].message):
        assert message.to_dict()["annotations"] == cited


@pytest.mark.proves("openai-responses", "citations", PYTHON)
async def test_response_annotates_web_pages_and_files(sdk: AsyncOpenAI) -> None:
    """Each is an event, and the response has them however it is read."""
    cited = [{"type": "url_citation", **PAGE}, FILE]
    made = await sdk.responses.create(model=MODEL, input=LINE)
    events: list[Any] = [event async for event in await sdk.responses.retrieve(made.id, stream=True)]
    assert [event.annotation.to_dict() for event in events if event.type == ADDED] == cited
    async with sdk.responses.stream(model=MODEL, input=LINE) as stream:
        final = await stream.get_final_response()
    responses: list[Any] = [made, events[-1].response, final]
    for response in responses:
        assert response.to_dict()["output"][0]["content"][0]["annotations"] == cited


async def test_citations_are_sent_back_unchanged(sdk: AsyncOpenAI) -> None:
    """A client that keeps the conversation itself may send them again."""
    made = await sdk.responses.create(model=MODEL, input=LINE)
    question: Any = {"role": "user", "content": LINE}
    asking: Any = [
        question,
        *[item.to_dict() for item in made.output],
        {"role": "user", "content": "#sim words=2 rate=0"},
    ]
    assert (await sdk.responses.create(model=MODEL, input=asking)).output_text == words(2)
    whole = await sdk.chat.completions.create(model=MODEL, messages=user_message(LINE))
    messages: Any = [question, whole.choices[0].message.to_dict(), *user_message("#sim words=2 rate=0")]
    assert (await sdk.chat.completions.create(model=MODEL, messages=messages)).choices[0].message.content == words(2)
