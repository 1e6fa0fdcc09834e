"""Claude's citations as annotations in both of OpenAI's protocols, with the Python SDK."""

from typing import Any

import pytest
from openai import AsyncOpenAI

from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.clients.openai_chat import MODEL, cursor_of, resume_turn, sdk_of, turn_of, user_message
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway, forget

PYTHON = "openai (Python)"
# A citation of a document without a name, of a page, and of a file.
LINE = "#sim words=3 rate=0 cites=3"
PLACE = {"start_index": 0, "end_index": len(words(3))}
PAGE = {"url": "https://page.example/1", "title": "Page 1", **PLACE}
FILE = {"type": "file_citation", "file_id": "file_sim2", "filename": "2.pdf", "index": len(words(3))}
ADDED = "response.output_text.annotation.added"


@pytest.mark.proves("openai-chat", "citations", PYTHON)
async def test_chat_completion_annotates_web_pages(
    system: System, gateway: Gateway, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant, sdk: AsyncOpenAI
) -> None:
    """In the accumulator as in the JSON body; a resumed stream has each once."""
    cited = [{"type": "url_citation", "url_citation": PAGE}]
    whole = await sdk.chat.completions.create(model=MODEL, messages=user_message(LINE))
    async with sdk.chat.completions.stream(model=MODEL, messages=user_message(LINE)) as stream:
        chunks = [event.chunk async for event in stream if event.type == "chunk"]
        final = await stream.get_final_completion()
    for message in (whole.choices[0].message, final.choices[0].message):
        assert message.to_dict()["annotations"] == cited
    turn = turn_of(whole.id)
    resumed = [chunk async for chunk in await resume_turn(sdk, turn)]
    assert [chunk.choices for chunk in resumed] == [chunk.choices for chunk in chunks]
    for number, chunk in enumerate(resumed):
        if (cursor := cursor_of(chunk)) is not None and chunk is not resumed[-1]:
            rest = [one.to_dict() async for one in await resume_turn(sdk, turn, cursor)]
            assert rest == [one.to_dict() for one in resumed[number + 1 :]]
            assert [delta["annotations"] for one in rest if "annotations" in (delta := delta_of(one))] == [cited]
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn)))
    # The first gateway may have the turn in memory.
    async with sdk_of((await new_gateway(system.nats_url)).url) as later:
        kept = [one.to_dict() async for one in await resume_turn(later, turn)]
    assert [delta["annotations"] for one in kept if "annotations" in (delta := delta_of(one))] == [cited]


def delta_of(chunk: dict[str, Any]) -> dict[str, Any]:
    delta: dict[str, Any] = chunk["choices"][0]["delta"]
    return delta


@pytest.mark.proves("openai-responses", "citations", PYTHON)
async def test_response_annotates_web_pages_and_files(
    system: System, gateway: Gateway, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant, sdk: AsyncOpenAI
) -> None:
    """Each is a numbered event; the response has them however it is read."""
    cited = [{"type": "url_citation", **PAGE}, FILE]
    made = await sdk.responses.create(model=MODEL, input=LINE)
    events: list[Any] = [event async for event in await sdk.responses.retrieve(made.id, stream=True)]
    assert [event.annotation.to_dict() for event in events if event.type == ADDED] == cited
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for number in range(len(events) - 1):
        rest = [one async for one in await sdk.responses.retrieve(made.id, stream=True, starting_after=number)]
        assert [one.to_dict() for one in rest] == [one.to_dict() for one in events[number + 1 :]]
    late: list[Any] = [one async for one in await snapshot(sdk, made.id)]
    assert [one.annotation.to_dict() for one in late if one.type == ADDED] == cited
    assert late[-1].sequence_number == events[-1].sequence_number
    async with sdk.responses.stream(model=MODEL, input=LINE) as stream:
        final = await stream.get_final_response()
    await forget(gateway, system_log, TurnKey(tenant, TurnId(made.id.removeprefix("resp_"))))
    async with sdk_of((await new_gateway(system.nats_url)).url) as later:
        archived: list[Any] = [one async for one in await later.responses.retrieve(made.id, stream=True)]
        looked_up = await later.responses.retrieve(made.id)
    assert [one.annotation.to_dict() for one in archived if one.type == ADDED] == cited
    responses: list[Any] = [made, events[-1].response, final, late[-1].response, archived[-1].response, looked_up]
    for response in responses:
        assert response.to_dict()["output"][0]["content"][0]["annotations"] == cited


async def snapshot(sdk: AsyncOpenAI, response: str) -> Any:
    return await sdk.responses.retrieve(response, stream=True, extra_query={"snapshot": "1"})


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
