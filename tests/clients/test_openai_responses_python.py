"""/v1/responses with OpenAI's Python SDK."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, cast

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tailrace.proto.entries import Failure
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import TurnLog
from tailrace.proto.subjects import TurnKey
from tests.clients.conftest import Takeover, read_stored_text
from tests.clients.openai_chat import sdk_of
from tests.clients.structured_answer import ANSWERED, RHINE, River
from tests.harness.cutting_proxy import Cutting, random_cuts
from tests.harness.displayed_text import SAYS
from tests.harness.generator_in_loop import read_last_request, words
from tests.harness.system import System
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, NewGateway, forget

MODEL = "claude-haiku-5-5"
LINE = "#sim words=40 rate=0"
SLOW = "#sim words=40 rate=100"
TEXT = words(40)
PYTHON = "openai (Python)"
DIALECT = "openai-responses"
LOOK: Any = {
    "type": "function",
    "name": "look",
    "parameters": {"type": "object", "properties": {"query": {"type": "string"}}},
    "strict": False,
}
CUT = (openai.APIConnectionError, httpx2.TransportError)


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with sdk_of(gateway.url) as client:
        yield client


def turn_of(response_id: str) -> str:
    return response_id.removeprefix("resp_")


def text_of(events: list[Any]) -> str:
    return "".join(event.delta for event in events if event.type == "response.output_text.delta")


def numbers(events: list[Any]) -> list[int]:
    return [event.sequence_number for event in events]


async def keep_events(stream: AsyncIterable[Any], events: list[Any]) -> None:
    """Appends events, also those before the connection breaks."""
    async for event in stream:
        events.append(event)  # noqa: PERF401  # `extend` keeps nothing of a stream that breaks


async def is_ended(sdk: AsyncOpenAI, response: str) -> bool:
    return (await sdk.responses.retrieve(response)).status not in ("queued", "in_progress")


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
    assert (await sdk.responses.retrieve(made.id)).to_dict() == made.to_dict()


@pytest.mark.proves(DIALECT, "stream", PYTHON)
async def test_response_streams(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """The raw events, and the SDK's accumulator, which checks their order."""
    events: list[Any] = []
    await keep_events(await sdk.responses.create(model=MODEL, input=LINE, stream=True), events)
    assert numbers(events) == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")
    assert events[0].type == "response.created"
    assert text_of(events) == TEXT == await read_stored_text(gateway, turn_of(events[0].response.id))
    async with sdk.responses.stream(model=MODEL, input=LINE) as stream:
        assert (await stream.get_final_response()).output_text == TEXT


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
        told_again = (await read_last_request(claude))["body"]["messages"]
        assert told_again == known
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
    with pytest.raises(openai.InternalServerError) as refused:
        await sdk.responses.create(model=MODEL, input="#sim words=5 fault=529@0", stream=is_streamed)
    assert (refused.value.status_code, refused.value.code) == (529, "backend_overloaded")
    with pytest.raises(openai.BadRequestError, match="web_search"):
        await sdk.responses.create(model=MODEL, input="hi", tools=[{"type": "web_search"}], stream=is_streamed)
    with pytest.raises(openai.BadRequestError, match="unknown model `"):
        await sdk.responses.create(model="gpt-6-astra", input="hi", stream=is_streamed)


@pytest.mark.proves(DIALECT, "errors during the stream", PYTHON)
async def test_failure_during_the_stream_is_an_event(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """`response.failed` with OpenAI's code; the same when it is retrieved."""
    events: list[Any] = []
    extension = {"on_interrupt": "fail"}
    stream = await sdk.responses.create(
        model=MODEL, input="#sim words=9 rate=0 fault=error@5", stream=True, extra_body=extension
    )
    await keep_events(stream, events)
    end = events[-1]
    assert end.type == "response.failed"
    assert (text_of(events), end.response.output_text) == (words(5), words(5))
    assert end.response.error is not None
    assert (end.response.status, end.response.error.code) == ("failed", "server_error")
    looked_up = await sdk.responses.retrieve(end.response.id)
    assert (looked_up.status, looked_up.error) == ("failed", end.response.error)


@pytest.mark.proves(DIALECT, "heartbeats before the first event", PYTHON)
async def test_heartbeats_are_comments(system: System, gateway: Gateway, new_gateway: NewGateway) -> None:
    patient = await new_gateway(system.nats_url, heartbeat_s=0.1)
    line = {"model": MODEL, "input": "#sim words=3 rate=0 wait=1.5", "stream": True}
    response = await patient.client.post("/v1/responses", json=line)
    head, *_, rest = response.content.split(b": hb\n")
    assert b"event: response.created" in head
    assert b"delta" not in head
    assert b"response.output_text.delta" in rest
    assert SAYS[DIALECT](response.content) == words(3)
    async with sdk_of(patient.url) as sdk, sdk.responses.stream(model=MODEL, input=str(line["input"])) as stream:
        assert (await stream.get_final_response()).output_text == words(3)


@pytest.mark.proves(DIALECT, "resumes when its gateway drains", PYTHON)
async def test_stream_of_a_draining_gateway_is_not_complete(
    system: System, gateway: Gateway, new_gateway: NewGateway
) -> None:
    """The gateway breaks the connection, so the SDK raises; another gateway continues."""
    leaving = await new_gateway(system.nats_url)
    events: list[Any] = []
    async with sdk_of(leaving.url) as sdk:
        stream = await sdk.responses.create(model=MODEL, input="#sim words=120 rate=100", stream=True)
        reading = asyncio.create_task(keep_events(stream, events))
        await until(lambda: bool(text_of(events)))
        leaving.stopping.set()
        with pytest.raises(CUT):
            await reading
    async with sdk_of(gateway.url) as sdk:
        response, last = events[0].response.id, events[-1].sequence_number
        await keep_events(await sdk.responses.retrieve(response, stream=True, starting_after=last), events)
    assert numbers(events) == list(range(len(events)))
    assert text_of(events) == words(120) == await read_stored_text(gateway, turn_of(response))


@pytest.mark.proves(DIALECT, "resumes with the SDK's accumulator", PYTHON)
async def test_sdks_accumulator_resumes(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """`.stream(response_id=, starting_after=)` reads all events and shows the new ones."""
    shown: list[Any] = []
    cuts = random_cuts(3, 1, bytes_min=3200, bytes_max=4500)
    async with Cutting(gateway.port, cuts) as proxy, sdk_of(proxy.url) as cut:
        with pytest.raises(CUT):
            async with cut.responses.stream(model=MODEL, input=SLOW) as stream:
                await keep_events(stream, shown)
        assert proxy.left == []
    response = shown[0].response.id
    last = shown[-1].sequence_number
    async with sdk.responses.stream(response_id=response, starting_after=last) as stream:
        await keep_events(stream, shown)
        final = await stream.get_final_response()
    assert numbers(shown) == list(range(len(shown)))
    assert text_of(shown) == final.output_text == TEXT == await read_stored_text(gateway, turn_of(response))


@pytest.mark.proves(DIALECT, "restart of the answer", PYTHON)
async def test_restarted_answer_is_not_mixed_with_the_old_one(takeover: Takeover) -> None:
    """An answer cut within thinking restarts: the reader receives an error, and a new request the new answer."""
    events: list[Any] = []
    async with sdk_of(takeover.gateway.url) as sdk:
        # Attempt, message_start and block start come before the thinking.
        line = "#sim words=5 rate=20 thinking=20"
        reading = asyncio.create_task(sdk.responses.create(model=MODEL, input=line, stream=True))
        async with takeover.run_and_kill_after(8):
            with pytest.raises(CUT):
                await keep_events(await reading, events)
            assert (events[0].type, events[-1].type) == ("response.created", "error")
            response = events[0].response.id
            again: list[Any] = []
            await keep_events(await sdk.responses.retrieve(response, stream=True), again)
            beyond = events[-1].sequence_number
            further: list[Any] = []
            await keep_events(await sdk.responses.retrieve(response, stream=True, starting_after=beyond), further)
    assert text_of(again) == words(5) == await read_stored_text(takeover.gateway, turn_of(response))
    assert again[0].type == "response.created"
    assert [event.to_dict() for event in again] == [event.to_dict() for event in further]
    assert numbers([*events, *again]) == list(range(len(events) + len(again)))


@pytest.mark.proves(DIALECT, "cancel", PYTHON)
async def test_response_is_cancelled(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Its readers receive the end, and the text stays."""
    events: list[Any] = []
    stream = await sdk.responses.create(model=MODEL, input="#sim words=900 rate=50", stream=True)
    reading = asyncio.create_task(keep_events(stream, events))
    await until(lambda: bool(text_of(events)))
    assert events[0].type == "response.created"
    cancelled = await sdk.responses.cancel(events[0].response.id)
    await reading
    end = events[-1]
    assert end.type == "response.incomplete"
    assert (cancelled.status, end.response.status) == ("cancelled", "cancelled")
    assert text_of(events) == cancelled.output_text == end.response.output_text
    again = await sdk.responses.cancel(cancelled.id)
    assert again.to_dict() == cancelled.to_dict()


@pytest.mark.proves(DIALECT, "background", PYTHON)
async def test_background_response(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """It can be retrieved before its end, and streamed at any time."""
    queued = await sdk.responses.create(model=MODEL, input=SLOW, background=True)
    assert queued.status in ("queued", "in_progress")
    events: list[Any] = []
    await keep_events(await sdk.responses.retrieve(queued.id, stream=True), events)
    await until(lambda: is_ended(sdk, queued.id))
    assert (await sdk.responses.retrieve(queued.id)).output_text == TEXT
    assert text_of(events) == TEXT == await read_stored_text(gateway, turn_of(queued.id))
    events.clear()
    await keep_events(await sdk.responses.create(model=MODEL, input=SLOW, background=True, stream=True), events)
    assert (events[0].type, text_of(events), events[-1].type) == ("response.created", TEXT, "response.completed")


async def test_background_response_has_the_turns_headers(sdk: AsyncOpenAI) -> None:
    headers = {"X-Session-ID": "background", "X-Project-ID": "rivers"}
    made = await sdk.responses.with_raw_response.create(model=MODEL, input=LINE, background=True, extra_headers=headers)
    turn = turn_of(made.parse().id)
    names = ("tailrace-turn", "x-request-id", "x-session-id", "x-project-id")
    assert [made.headers.get(name) for name in names] == [turn, turn, "background", "rivers"]


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
        reading = asyncio.gather(keep_events(joining, late), keep_events(watching, early))
        await until(lambda: text_of(late) == text_of(early) == "abcdefgh")
        await writer.store_texts("i", "j")
        await writer.end()
        await reading
        async with sdk.responses.stream(response_id=response) as stream:
            assert (await stream.get_final_response()).output_text == "abcdefghij"
    deltas = [event.delta for event in late if event.type == "response.output_text.delta"]
    assert deltas == ["abcdefgh", "i", "j"]
    assert numbers(late) == numbers(early)[-len(late) :]
    assert late[-1].to_dict() == early[-1].to_dict()


@pytest.mark.proves(DIALECT, "resumes in another dialect", PYTHON)
async def test_response_is_read_in_another_dialect(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """A turn's id is a response's id."""
    made = await sdk.responses.create(model=MODEL, input=LINE)
    for dialect in ("tailrace", "anthropic", "openai-chat", DIALECT):
        sent = await gateway.client.get(f"/v1/turns/{turn_of(made.id)}/events?dialect={dialect}")
        assert SAYS[dialect](sent.content) == TEXT
    accepted = (await gateway.client.post("/v1/turns", json={"message": SLOW})).json()
    async with sdk.responses.stream(response_id=f"resp_{accepted['turn']}") as stream:
        assert (await stream.get_final_response()).output_text == TEXT
    assert (await sdk.responses.retrieve(accepted["turn"])).id == f"resp_{accepted['turn']}"


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
        await keep_events(await later.responses.retrieve(made.id, stream=True, starting_after=6), events)
    assert [item.to_dict()["id"] for item in final.output] == [item.to_dict()["id"] for item in made.output]
    assert final.output_text == made.output_text == words(9)
    assert numbers(events) == list(range(7, 7 + len(events)))
    assert text_of(events) == ""
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
    asked, answered, called, _ = [item.model_dump() async for item in sdk.responses.input_items.list(made.id)]
    parts = [part.get("text") or part.get("image_url") for part in asked["content"]]
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


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("stream=maybe", "`stream`"),
        ("stream=true&starting_after=-1", "cursor"),
        ("stream=true&starting_after=1&snapshot=1", "without"),
    ],
)
async def test_invalid_query_is_refused(sdk: AsyncOpenAI, query: str, message: str) -> None:
    made = await sdk.responses.create(model=MODEL, input="#sim words=1 rate=0")
    with pytest.raises(openai.BadRequestError, match=message):
        await sdk.get(f"/responses/{made.id}?{query}", cast_to=object)
    for wrong in (
        "limit=0",
        "limit=x",
        f"limit=000000001{'0' * 5000}",
        "limit=1000000001",
        "order=up",
        "after=nothing",
    ):
        with pytest.raises(openai.BadRequestError):
            await sdk.get(f"/responses/{made.id}/input_items?{wrong}", cast_to=object)


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
    from tailrace.gateway.clients.openai.responses_object import error_object

    codes = ("backend_rate_limited", "backend_refused_request", "backend_overloaded")
    assert [error_object(Failure(code, "?"))["code"] for code in codes] == [
        "rate_limit_exceeded",
        "invalid_prompt",
        "server_error",
    ]
