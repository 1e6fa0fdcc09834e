"""/v1/responses with OpenAI's Python SDK."""

import asyncio
import base64
import json
import os
from typing import Any, cast, get_args

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses.response import IncompleteDetails

from tailrace.proto.entries import Failure
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import TurnLog
from tailrace.protocols.openai.responses_object import error_object
from tests.clients.conftest import read_stored_text
from tests.clients.openai_chat import LINE, MODEL, SLOW, TEXT, collect, event_text, sdk_of
from tests.clients.structured_answer import ANSWERED, RHINE, River
from tests.harness.generator_in_loop import read_last_request, words
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, forget, on_shared_loop
from tools.reference_tables import INCOMPLETE_REASONS

PYTHON = "openai (Python)"
DIALECT = "openai-responses"
LOOK: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    "strict": False,
}


def turn_of(response_id: str) -> str:
    return response_id.removeprefix("resp_")


def numbers(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


@pytest.mark.proves(DIALECT, "answer as one JSON body", PYTHON)
async def test_response_as_json(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Text, status and usage in OpenAI's format; the headers name the turn."""
    raw = await sdk.responses.with_raw_response.create(model=MODEL, input=LINE, temperature=0.5)
    made = raw.parse()
    assert (made.output_text, made.status, made.object) == (TEXT, "completed", "response")
    assert made.usage is not None
    assert (made.usage.output_tokens, made.usage.total_tokens) == (40, 40 + made.usage.input_tokens)
    turn = turn_of(made.id)
    assert await read_stored_text(gateway, turn) == TEXT
    record = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    names = ("tailrace-turn", "x-request-id", "x-session-id", "tailrace-ignored")
    assert [raw.headers[name] for name in names] == [turn, turn, record["session"], "temperature"]
    for name in (made.id, turn):
        assert (await sdk.responses.retrieve(name)).to_dict() == made.to_dict()


@pytest.mark.proves(DIALECT, "JSON body, stream, resume", "openai (Python, sync)")
async def test_response_without_asyncio(gateway: Gateway) -> None:
    def ask() -> tuple[str, str, str, list[int]]:
        with OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as sdk:
            whole = sdk.responses.create(model=MODEL, input=LINE).output_text
            with sdk.responses.stream(model=MODEL, input=LINE) as stream:
                made = stream.get_final_response()
            with sdk.responses.stream(response_id=made.id, starting_after=5) as again:
                seen = [event.sequence_number for event in again]
                return whole, made.output_text, again.get_final_response().output_text, seen[:2]

    assert await asyncio.to_thread(ask) == (TEXT, TEXT, TEXT, [6, 7])


@pytest.mark.usefixtures("generator")
async def test_a_reference_to_an_unknown_or_too_large_item_is_refused(system: System, new_gateway: NewGateway) -> None:
    gateway = await new_gateway(system.nats_url, body_bytes_max=3_000)
    async with sdk_of(gateway.url) as sdk:
        made = await sdk.responses.create(model=MODEL, input=LINE)
        for unknown in ("msg_1", f"{made.output[0].id}0"):
            with pytest.raises(openai.BadRequestError, match=f"no response has the item `{unknown}`"):
                await sdk.responses.create(model=MODEL, input=[{"type": "item_reference", "id": unknown}])
        with pytest.raises(openai.APIStatusError) as raised:
            await sdk.responses.create(model=MODEL, input=cast("Any", references_to(made.output * 20)))
    assert (raised.value.status_code, raised.value.code) == (413, "body_too_large")


def references_to(items: list[Any]) -> list[dict[str, str]]:
    return [{"type": "item_reference", "id": item.id} for item in items]


@pytest.mark.proves(DIALECT, "tools", PYTHON)
@pytest.mark.proves(DIALECT, "thinking", PYTHON)
async def test_tool_call_and_result(claude: str, sdk: AsyncOpenAI) -> None:
    """By `previous_response_id`, by all items again, or by their ids: the model receives the same conversation."""
    line = '#sim words=2 rate=0 thinking=3 tool=look json={"query":"the sky"}'
    async with sdk.responses.stream(model=MODEL, input=line, tools=[LOOK]) as stream:
        kinds = {event.type async for event in stream}
        made = await stream.get_final_response()
    assert {"response.reasoning_summary_text.delta", "response.function_call_arguments.delta"} <= kinds
    assert [item.type for item in made.output] == ["reasoning", "message", "function_call"]
    call: Any = made.output[-1]
    assert (call.name, call.arguments) == ("look", '{"query":"the sky"}')
    output: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "Stars."}
    after = await sdk.responses.create(model=MODEL, previous_response_id=made.id, input=[output], tools=[LOOK])
    assert after.output_text == words(2)
    assert after.previous_response_id == made.id
    known = (await read_last_request(claude))["body"]["messages"]
    for items in ([item.to_dict() for item in made.output], references_to(made.output)):
        everything: list[Any] = [{"role": "user", "content": line}, *items, output]
        resent = await sdk.responses.create(model=MODEL, input=everything, tools=[LOOK])
        assert resent.output_text == words(2)
        repeated = (await read_last_request(claude))["body"]["messages"]
        assert repeated == known
    assert [block["type"] for block in known[1]["content"]] == ["thinking", "text", "tool_use"]
    assert known[1]["content"][0]["signature"].startswith("sim")


@pytest.mark.proves(DIALECT, "structured output", PYTHON)
async def test_answer_fits_its_schema(sdk: AsyncOpenAI) -> None:
    made = await sdk.responses.parse(model=MODEL, input=ANSWERED, text_format=River)
    assert made.output_parsed == RHINE


@pytest.mark.proves(DIALECT, "stop sequences and limits", PYTHON)
async def test_response_cut_by_its_limit_is_incomplete(sdk: AsyncOpenAI) -> None:
    made = await sdk.responses.create(model=MODEL, input=LINE, max_output_tokens=3)
    assert (made.output_text, made.status) == (words(3), "incomplete")
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    stream = await sdk.responses.create(model=MODEL, input=LINE, max_output_tokens=3, stream=True)
    assert [event.type async for event in stream][-1] == "response.incomplete"


@pytest.mark.proves(DIALECT, "errors before the first event", PYTHON)
@pytest.mark.parametrize("is_streamed", [True, False])
async def test_failure_before_the_first_event_has_a_status(sdk: AsyncOpenAI, *, is_streamed: bool) -> None:
    sdk = sdk.with_options(max_retries=0)
    with pytest.raises(openai.InternalServerError) as refused:
        await sdk.responses.create(model=MODEL, input="#sim words=5 fault=529@0", stream=is_streamed)
    assert (refused.value.status_code, refused.value.code) == (529, "backend_overloaded")
    with pytest.raises(openai.BadRequestError, match="image_generation"):
        await sdk.responses.create(model=MODEL, input="hi", tools=[{"type": "image_generation"}], stream=is_streamed)
    with pytest.raises(openai.NotFoundError, match="unknown model `"):
        await sdk.responses.create(model="gpt-6-astra", input="hi", stream=is_streamed)


@pytest.mark.proves(DIALECT, "errors during the stream", PYTHON)
async def test_failure_during_the_stream_is_an_event(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """`response.failed` with OpenAI's code; the same when it is retrieved."""
    events: list[Any] = []
    extension = {"on_interrupt": "fail"}
    stream = await sdk.responses.create(
        model=MODEL, input="#sim words=9 rate=0 fault=error@5", stream=True, extra_body=extension
    )
    await collect(stream, events)
    end = events[-1]
    assert end.type == "response.failed"
    assert (event_text(events), end.response.output_text) == (words(5), words(5))
    assert end.response.error is not None
    assert (end.response.status, end.response.error.code) == ("failed", "server_error")
    looked_up = await sdk.responses.retrieve(end.response.id)
    assert (looked_up.status, looked_up.error) == ("failed", end.response.error)


@pytest.mark.proves(DIALECT, "cancel", PYTHON)
async def test_response_is_cancelled(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Its readers receive the end, and the text stays."""
    events: list[Any] = []
    stream = await sdk.responses.create(model=MODEL, input="#sim words=900 rate=50", stream=True)
    reading = asyncio.create_task(collect(stream, events))
    await until(lambda: bool(event_text(events)))
    assert events[0].type == "response.created"
    cancelled = await sdk.responses.cancel(events[0].response.id)
    await reading
    end = events[-1]
    assert end.type == "response.incomplete"
    assert (cancelled.status, end.response.status) == ("cancelled", "cancelled")
    # AI SDK takes an end without a reason for a whole answer.
    for one in (cancelled, end.response):
        assert one.incomplete_details is not None
        assert one.incomplete_details.reason == "cancelled"
    assert event_text(events) == cancelled.output_text == end.response.output_text
    again = await sdk.responses.cancel(cancelled.id)
    assert again.to_dict() == cancelled.to_dict()


def test_the_reference_says_which_reasons_openai_has() -> None:
    (literal, _) = get_args(IncompleteDetails.model_fields["reason"].annotation)
    known = {reason for reason, (_, is_known) in INCOMPLETE_REASONS.items() if is_known}
    # Tailrace never sends the reason for a limit of messages.
    assert known == set(get_args(literal)) - {"max_messages"}


@pytest.mark.proves(DIALECT, "background", PYTHON)
async def test_background_response(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """It can be retrieved before its end, and streamed at any time. Its headers name the turn."""
    headers = {"X-Session-ID": "background", "X-Project-ID": "rivers"}
    raw = await sdk.responses.with_raw_response.create(model=MODEL, input=SLOW, background=True, extra_headers=headers)
    queued, turn = raw.parse(), turn_of(raw.parse().id)
    names = ("tailrace-turn", "x-request-id", "x-session-id", "x-project-id")
    assert [raw.headers.get(name) for name in names] == [turn, turn, "background", "rivers"]
    assert queued.status in ("queued", "in_progress")
    events: list[Any] = []
    await collect(await sdk.responses.retrieve(queued.id, stream=True), events)
    assert (await sdk.responses.retrieve(queued.id)).output_text == TEXT
    assert event_text(events) == TEXT == await read_stored_text(gateway, turn)
    events.clear()
    await collect(await sdk.responses.create(model=MODEL, input=SLOW, background=True, stream=True), events)
    assert (events[0].type, event_text(events), events[-1].type) == ("response.created", TEXT, "response.completed")


@pytest.mark.proves(DIALECT, "snapshot for a late reader", PYTHON)
async def test_snapshot_for_a_late_reader(lone_gateway: Gateway, log: TurnLog, tenant: Tenant) -> None:
    """`snapshot=1`: one delta for the text so far, then live; the numbers equal those of a reader from the start."""
    writer = Writer(log, TurnKey(tenant, TurnId(new_id())))
    await writer.open(*"abcdefgh")
    late: list[Any] = []
    early: list[Any] = []
    async with sdk_of(lone_gateway.url) as sdk:
        response = f"resp_{writer.key.turn}"
        joining = await sdk.responses.retrieve(response, stream=True, extra_query={"snapshot": "1"})
        watching = await sdk.responses.retrieve(response, stream=True)
        reading = asyncio.gather(collect(joining, late), collect(watching, early))
        await until(lambda: event_text(late) == event_text(early) == "abcdefgh")
        await writer.store_texts("i", "j")
        await writer.end()
        await reading
        async with sdk.responses.stream(response_id=response) as stream:
            assert (await stream.get_final_response()).output_text == "abcdefghij"
    deltas = [event.delta for event in late if event.type == "response.output_text.delta"]
    assert deltas == ["abcdefgh", "i", "j"]
    assert numbers(late) == numbers(early)[-len(late) :]
    assert late[-1].to_dict() == early[-1].to_dict()


@pytest.mark.proves(DIALECT, "read after the log has dropped the turn", PYTHON)
async def test_response_is_read_after_the_log_has_dropped_it(
    system: System, gateway: Gateway, new_gateway: NewGateway, system_log: TurnLog, tenant: Tenant, sdk: AsyncOpenAI
) -> None:
    """Retrieved, streamed with the SDK's accumulator, and resumed."""
    line = '#sim words=9 rate=0 thinking=2 tool=look json={"query":"the sky"}'
    made = await sdk.responses.create(model=MODEL, input=line, tools=[LOOK])
    await forget(gateway, system_log, TurnKey(tenant, TurnId(turn_of(made.id))))
    # The first gateway may have the turn in memory.
    other = await new_gateway(system.nats_url)
    events: list[Any] = []
    async with sdk_of(other.url) as later:
        assert (await later.responses.retrieve(made.id)).to_dict() == made.to_dict()
        async with later.responses.stream(response_id=made.id) as stream:
            final = await stream.get_final_response()
        await collect(await later.responses.retrieve(made.id, stream=True, starting_after=6), events)
    assert [item.to_dict()["id"] for item in final.output] == [item.to_dict()["id"] for item in made.output]
    assert final.output_text == made.output_text == words(9)
    assert numbers(events) == list(range(7, 7 + len(events)))
    assert event_text(events) == ""
    assert (events[-1].type, events[-1].response.to_dict()) == ("response.completed", made.to_dict())


@pytest.mark.proves(DIALECT, "conversations", PYTHON)
async def test_response_continues_a_response_or_a_conversation(gateway: Gateway, claude: str, sdk: AsyncOpenAI) -> None:
    """By its id, or in a conversation with any name; an unknown id is not found."""
    first = await sdk.responses.create(model=MODEL, input=LINE, conversation="conv-1", instructions="Be brief.")
    second = await sdk.responses.create(model=MODEL, input="#sim words=2 rate=0", conversation={"id": "conv-1"})
    third = await sdk.responses.create(model=MODEL, input="#sim words=3 rate=0", previous_response_id=first.id)
    assert second.conversation == third.conversation == first.conversation
    assert (second.previous_response_id, third.previous_response_id) == (first.id, first.id)
    model_request = (await read_last_request(claude))["body"]
    assert [message["role"] for message in model_request["messages"]] == ["user", "assistant", "user"]
    assert "system" not in model_request
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.create(model=MODEL, input="hi", previous_response_id=f"resp_{new_id()}")
    running = await sdk.responses.create(model=MODEL, input="#sim words=900 rate=50", background=True)
    with pytest.raises(openai.ConflictError):
        await sdk.responses.create(model=MODEL, input="hi", previous_response_id=running.id)
    await sdk.responses.cancel(running.id)


@pytest.mark.proves(DIALECT, "input items", PYTHON)
async def test_input_items_are_listed(sdk: AsyncOpenAI) -> None:
    """Newest first, in pages."""
    texts = ["one", "two", "three", "#sim words=1 rate=0"]
    made = await sdk.responses.create(model=MODEL, input=[{"role": "user", "content": text} for text in texts])

    async def list_items(**given: Any) -> list[str]:
        found: list[Any] = [item async for item in sdk.responses.input_items.list(made.id, **given)]
        return [item.content[0].text for item in found]

    assert await list_items() == texts[::-1]
    assert await list_items(order="asc", limit=1) == texts


async def test_listed_input_items_have_their_long_texts_and_images(sdk: AsyncOpenAI) -> None:
    """They are stored as blobs, and returned as sent."""
    image = f"data:image/png;base64,{base64.b64encode(os.urandom(100_000)).decode()}"
    text = "#sim words=1 rate=0\n" + "long " * 20_000
    given: Any = [
        {"type": "input_text", "text": text},
        {"type": "input_image", "image_url": image, "detail": "auto"},
    ]
    calls: Any = [
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": json.dumps({"q": text})},
        {"type": "function_call_output", "call_id": "c1", "output": text},
    ]
    made = await sdk.responses.create(
        model=MODEL, input=[{"role": "user", "content": "hi"}, *calls, {"role": "user", "content": given}]
    )
    question, answered, called, _ = [item.model_dump() async for item in sdk.responses.input_items.list(made.id)]
    parts = [part.get("text") or part.get("image_url") for part in question["content"]]
    assert (parts, answered["output"], json.loads(called["arguments"])) == ([text, image], text, {"q": text})


@pytest.mark.proves(DIALECT, "delete", PYTHON)
async def test_deleted_response_is_not_found(sdk: AsyncOpenAI) -> None:
    """Neither retrieved nor continued."""
    made = await sdk.responses.create(model=MODEL, input="#sim words=1 rate=0")
    await sdk.responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        await sdk.responses.create(model=MODEL, input="hi", previous_response_id=made.id)


async def test_the_beta_resource_of_the_sdk_uses_the_same_routes(sdk: AsyncOpenAI) -> None:
    """It adds `?beta=true` to their paths."""
    responses = sdk.beta.responses
    made = await responses.create(model=MODEL, input="#sim words=1 rate=0")
    events = [event.type async for event in await responses.retrieve(made.id, stream=True)]
    assert (made.status, events[-1]) == ("completed", "response.completed")
    assert [item.type async for item in responses.input_items.list(made.id)] == ["message"]
    assert (await responses.cancel(made.id)).id == made.id
    await responses.delete(made.id)


@on_shared_loop
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?stream=maybe", "`stream`"),
        ("?stream=true&starting_after=-1", "`sequence_number`"),
        ("?stream=true&starting_after=1&snapshot=1", "without"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "from 1 to 100"),
        (f"/input_items?limit=000000001{'0' * 5000}", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=nothing", "after"),
    ],
    ids=lambda given: given[:40],
)
async def test_invalid_query_is_refused(shared_gateway: Gateway, query: str, message: str) -> None:
    body = {"model": MODEL, "input": "#sim words=1 rate=0"}
    made = (await shared_gateway.client.post("/v1/responses", json=body)).json()
    answer = await shared_gateway.client.get(f"/v1/responses/{made['id']}{query}")
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (400, True), answer.text


async def test_a_number_beyond_the_last_event_of_a_running_response_is_refused(
    gateway: Gateway, sdk: AsyncOpenAI
) -> None:
    """As a cursor of the dialect `tailrace` is. The client would miss all events up to this number."""
    made = await sdk.responses.create(model=MODEL, input="#sim words=900 rate=50", background=True)
    events: list[Any] = []
    reading = asyncio.create_task(collect(await sdk.responses.retrieve(made.id, stream=True), events))
    await until(lambda: bool(event_text(events)))
    path, beyond = f"/v1/responses/{made.id}?stream=true&starting_after=", 10**6
    refused = await gateway.client.get(f"{path}{beyond}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "cursor_invalid")
    # The number of the newest event is not refused.
    async with gateway.client.stream("GET", f"{path}{events[-1].sequence_number}") as rest:
        assert rest.status_code == 200
    await sdk.responses.cancel(made.id)
    await reading
    refused = await gateway.client.get(f"{path}{beyond}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "cursor_invalid")


@pytest.mark.proves(DIALECT, "repeated POST returns the same turn", PYTHON)
async def test_repeated_post_is_one_turn(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    headers = {"Idempotency-Key": new_id()}
    made = [
        await sdk.responses.create(model=MODEL, input=LINE, extra_headers=headers),
        await sdk.responses.create(model=MODEL, input=LINE, extra_headers=headers),
    ]
    assert made[0].to_dict() == made[1].to_dict()


def test_failure_has_one_of_openais_codes() -> None:
    """OpenAI's list of codes is closed."""
    codes = ("backend_rate_limited", "backend_refused_request", "backend_overloaded")
    assert [error_object(Failure(code, "?"))["code"] for code in codes] == [
        "rate_limit_exceeded",
        "invalid_prompt",
        "server_error",
    ]
