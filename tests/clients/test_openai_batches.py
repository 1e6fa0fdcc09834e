"""/v1/batches with OpenAI's Python SDK: upload, create, poll, download the results."""

import asyncio
import tracemalloc
from typing import Any

import msgspec
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Batch

from tailrace.features.batches.openai_input import parse_lines
from tailrace.proto.ids import Tenant, TurnId, TurnKey, child_id
from tailrace.proto.nats import TurnLog
from tests.clients import node
from tests.harness.generator_in_loop import words
from tests.harness.loop_pause import longest_pause
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, forget

DIALECT = "files and batches"
PYTHON = "openai (Python)"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


def request(name: str, url: str, **body: Any) -> dict[str, Any]:
    given = {"model": "claude-haiku-5-5", **body}
    return {"custom_id": name, "method": "POST", "url": url, "body": given}


def chat(name: str, line: str, **more: Any) -> dict[str, Any]:
    return request(name, CHAT, messages=[{"role": "user", "content": line}], **more)


async def create(sdk: AsyncOpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> Batch:
    content = b"".join(line if isinstance(line, bytes) else msgspec.json.encode(line) + b"\n" for line in lines)
    file = await sdk.files.create(file=("in.jsonl", content), purpose="batch")
    return await sdk.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


async def wait_for_end(sdk: AsyncOpenAI, batch: Batch) -> Batch:
    async def is_over() -> bool:
        return (await sdk.batches.retrieve(batch.id)).status not in ("validating", "in_progress")

    await until(is_over)
    return await sdk.batches.retrieve(batch.id)


async def lines(sdk: AsyncOpenAI, file: str | None) -> list[dict[str, Any]]:
    assert file is not None
    content = (await sdk.files.content(file)).content
    shown = await sdk.files.retrieve(file)
    assert (shown.bytes, shown.purpose) == (len(content), "batch_output")
    return [msgspec.json.decode(line) for line in content.splitlines()]


@pytest.mark.proves(DIALECT, "batches", PYTHON)
async def test_a_batch_of_chat_completions(
    gateway: Gateway, sdk: AsyncOpenAI, system_log: TurnLog, tenant: Tenant
) -> None:
    """Answers are in the output file; a refused line and a failed call are in the error file."""
    made = await create(
        sdk,
        [
            chat("größe 1", "#sim words=3 rate=0"),
            chat("refused", "#sim words=3 rate=0", n=2),
            chat("streamed", "#sim words=3 rate=0", stream=True),
            chat("fails", "#sim error=invalid_request_error"),
            chat("größe 2", "#sim words=2 rate=0"),
        ],
        metadata={"of": "a client"},
    )
    assert (made.object, made.endpoint, made.metadata, made.errors) == ("batch", CHAT, {"of": "a client"}, None)
    batch = await wait_for_end(sdk, made)
    assert batch.status == "completed", batch
    assert batch.request_counts is not None
    assert batch.request_counts.to_dict() == {"total": 5, "completed": 2, "failed": 3}
    output = await lines(sdk, batch.output_file_id)
    assert [(one["custom_id"], one["response"]["status_code"], one["error"]) for one in output] == [
        ("größe 1", 200, None),
        ("größe 2", 200, None),
    ]
    answers = [one["response"]["body"]["choices"][0]["message"]["content"] for one in output]
    assert answers == [words(3), words(2)]
    errors = {one["custom_id"]: one["response"] for one in await lines(sdk, batch.error_file_id)}
    assert list(errors) == ["refused", "streamed", "fails"]
    assert {name: one["status_code"] for name, one in errors.items()} | {"fails": 0} == {
        "refused": 400,
        "streamed": 400,
        "fails": 0,
    }
    assert errors["refused"]["body"]["error"]["message"].startswith("`n`")
    assert errors["fails"]["body"]["error"]["code"].startswith("backend_")
    # The database has the same, after the log has dropped the turns.
    turn = TurnId(batch.id.removeprefix("batch_"))
    stored = [await lines(sdk, file) for file in (batch.output_file_id, batch.error_file_id)]
    for one in [*output, *stored[1][2:]]:
        await forget(gateway, system_log, TurnKey(tenant, TurnId(one["id"].removeprefix("batch_req_"))))
    await forget(gateway, system_log, TurnKey(tenant, turn))
    assert await sdk.batches.retrieve(batch.id) == batch
    assert [await lines(sdk, file) for file in (batch.output_file_id, batch.error_file_id)] == stored


@pytest.mark.proves(DIALECT, "batches", PYTHON)
async def test_a_batch_of_responses(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """The list has only batches of files, and pages through them."""
    line = request("one", RESPONSES, input="#sim words=3 rate=0", metadata={"of": "a line"})
    mine = [await create(sdk, [line], RESPONSES) for _ in range(3)]
    other = {"requests": [{"custom_id": "one", "params": {"message": "#sim words=1 rate=0"}}]}
    turn_batch = (await gateway.client.post("/v1/turn-batches", json=other)).json()["batch"]
    (output,) = await lines(sdk, (await wait_for_end(sdk, mine[0])).output_file_id)
    body = output["response"]["body"]
    assert (body["object"], body["metadata"]) == ("response", {"of": "a line"})
    assert body["output"][0]["content"][0]["text"] == words(3)
    assert [batch.id async for batch in sdk.batches.list(limit=2)] == [one.id for one in mine[::-1]]
    with pytest.raises(openai.NotFoundError):
        await sdk.batches.retrieve(turn_batch)


@pytest.mark.proves(DIALECT, "files", "openai (Node)")
@pytest.mark.proves(DIALECT, "batches", "openai (Node)")
async def test_files_and_batches_in_javascript(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    (shown,) = await node.run("openai-batches.mjs", KEY, gateway.url, "#sim words=3 rate=0")
    answers, names = [words(3)] * 2, ["größe.jsonl"]
    assert shown == {
        "isSame": True,
        "status": "completed",
        "answers": answers,
        "files": names,
        "batches": [True],
        "deleted": True,
    }


async def test_a_cancelled_batch_lists_what_did_not_run(sdk: AsyncOpenAI) -> None:
    made = await create(sdk, [chat(str(n), "#sim words=500 rate=5") for n in range(2)], extra_body={"parallel": 1})
    await sdk.batches.cancel(made.id)
    batch = await wait_for_end(sdk, made)
    assert (batch.status, batch.output_file_id) == ("cancelled", None)
    errors = await lines(sdk, batch.error_file_id)
    assert [(one["custom_id"], one["error"]["code"]) for one in errors] == [
        ("0", "batch_cancelled"),
        ("1", "batch_cancelled"),
    ]


async def test_a_cancelled_message_batch_has_the_answers_that_are_paid_for(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """They are stored after the batch's end."""
    given = [chat("late", "#sim words=2 wait=3600"), chat("quick", "#sim words=2 rate=0")]
    made = await create(sdk, given, extra_body={"via": "message_batches"})

    async def message_batch() -> Any:
        batch = made.id.removeprefix("batch_")
        return (await gateway.client.get(f"/v1/turn-batches/{batch}")).json()["message_batch"]

    await until(message_batch)
    batch = await sdk.batches.cancel(made.id)
    assert (batch.status, batch.output_file_id is None) == ("cancelled", False)

    async def has_output() -> bool:
        return (await sdk.files.content(batch.output_file_id or "")).content != b""

    await until(has_output)
    assert [one["custom_id"] for one in await lines(sdk, batch.output_file_id)] == ["quick"]
    assert [one["custom_id"] for one in await lines(sdk, batch.error_file_id)] == ["late"]


async def test_a_cancelled_turn_of_a_batch_is_one_of_its_errors(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """The batch completes. Its code is that of the turn, not of a turn that was lost."""
    made = await create(sdk, [chat("one", "#sim words=500 rate=5"), chat("two", "#sim words=1 rate=0")])
    turn = child_id(TurnId(made.id.removeprefix("batch_")), 0)

    async def is_cancelled() -> bool:
        return (await gateway.client.post(f"/v1/turns/{turn}/cancel")).status_code == 200

    await until(is_cancelled)
    batch = await wait_for_end(sdk, made)
    assert batch.status == "completed"
    (error,) = await lines(sdk, batch.error_file_id)
    assert (error["custom_id"], error["response"]) == ("one", None)
    assert error["error"] == {"code": "turn_cancelled", "message": "the turn was cancelled"}


async def test_an_invalid_file_fails_the_batch(sdk: AsyncOpenAI) -> None:
    """No line runs; `errors` names the lines."""
    made = await create(sdk, [chat("one", "#sim words=1 rate=0"), b"{no json}\n", chat("one", "again")])
    batch = await wait_for_end(sdk, made)
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.status == "failed"
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (2, "invalid_json_line"),
        (3, "duplicate_custom_id"),
    ]
    assert (batch.output_file_id, batch.error_file_id) == (None, None)


async def test_the_errors_of_lines_name_the_fields_as_the_lines_do(sdk: AsyncOpenAI) -> None:
    """As the errors of their route do. A batch whose every line is refused completes.

    A line that stores no turn is refused, too: its result is made from the turn.
    """
    bodies: list[dict[str, Any]] = [{"max_output_tokens": 0}, {"input": []}, {"store": False}]
    given = [request(str(number), RESPONSES, **{"input": "hi", **body}) for number, body in enumerate(bodies)]
    batch = await wait_for_end(sdk, await create(sdk, given, RESPONSES))
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.failed, batch.output_file_id) == ("completed", 3, None)
    responses = [one["response"] for one in await lines(sdk, batch.error_file_id)]
    errors = [response["body"]["error"] for response in responses]
    assert [response["status_code"] for response in responses] == [400] * 3
    assert [error["param"] for error in errors] == ["max_output_tokens", "input", "store"]
    assert all(error["message"].startswith(f"`{error['param']}`") for error in errors[:2])


async def test_a_repeated_batch_after_its_file_was_deleted(sdk: AsyncOpenAI) -> None:
    """A client that lost the answer gets its batch, not a 404."""
    line = msgspec.json.encode(chat("one", "#sim words=1 rate=0"))
    file = await sdk.files.create(file=("in.jsonl", line), purpose="batch")

    async def create_once() -> Batch:
        headers = {"Idempotency-Key": file.id}
        return await sdk.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            extra_headers=headers,
        )

    made = await create_once()
    await sdk.files.delete(file.id)
    assert (await create_once()).id == made.id


async def test_metadata_is_bounded(sdk: AsyncOpenAI) -> None:
    """Each page of the list contains it."""
    with pytest.raises(openai.BadRequestError) as refused:
        await create(sdk, [chat("one", "hi")], metadata={"of": "x" * 513})
    assert refused.value.param == "metadata.of"


async def test_different_schemas_are_bounded(sdk: AsyncOpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each check of a schema starts a subprocess."""
    monkeypatch.setattr("tailrace.features.batches.new_batch.SCHEMAS_MAX", 3)

    def schema(number: int) -> dict[str, Any]:
        # The first one is invalid, which is a check, too.
        shape = {"type": "object" if number else "no type", "title": str(number)}
        return {"type": "json_schema", "json_schema": {"name": "a", "schema": shape}}

    inputs = [chat(str(number), "#sim words=1 rate=0", response_format=schema(number % 5)) for number in range(6)]
    batch = await sdk.batches.cancel((await create(sdk, inputs)).id)
    refused = [one for one in await lines(sdk, batch.error_file_id) if one["error"] is None]
    errors = {one["custom_id"]: one["response"]["body"]["error"] for one in refused}
    assert list(errors) == ["0", "3", "4", "5"]
    assert "3 different schemas" in errors["4"]["message"]
    assert errors["5"] == errors["0"]


async def test_a_file_for_something_else_is_refused(sdk: AsyncOpenAI) -> None:
    file = await sdk.files.create(file=("in.jsonl", b"{}"), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="purpose `batch`"):
        await sdk.batches.create(input_file_id=file.id, endpoint="/v1/responses", completion_window="24h")


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", "empty_file"),
        (b"\n" * 3, "empty_file"),
        (b"[]", "invalid_json_line"),
        (b'{"custom_id": 1}', "invalid_json_line"),
        (b"\xff", "invalid_json_line"),
        (b'{"url": "/v1/responses", "body": {}}', "missing_required_parameter"),
        (b'{"custom_id": "a", "url": "/v1/embeddings", "body": {}}', "invalid_url"),
        (b'{"custom_id": "a", "url": "/v1/responses", "method": "GET", "body": {}}', "invalid_method"),
        (b'{"custom_id": "a", "url": "/v1/responses", "body": []}', "missing_required_parameter"),
        (b'{"custom_id": "a", "url": "/v1/responses"}', "missing_required_parameter"),
        (b"{}\n" * 10_001, "too_many_tasks"),
        (b"\n" * 100_001, "too_many_tasks"),
    ],
)
def test_lines_that_are_no_requests(line: bytes, code: str) -> None:
    requests, errors = parse_lines(line, RESPONSES)
    assert (requests, [error.code for error in errors]) == ([], [code])


def test_the_values_of_all_lines_are_limited_together() -> None:
    """A file of 29 MB with 10 million empty objects took 1.5 GB of the gateway's memory."""
    line = b'{"custom_id": "%d", "url": "/v1/responses", "body": {"tools": [' + b"1," * 90_000 + b"1]}}\n"
    requests, errors = parse_lines(b"".join(line % number for number in range(11)), RESPONSES)
    assert (len(requests), errors) == (11, [])
    requests, errors = parse_lines(b"".join(line % number for number in range(12)), RESPONSES)
    assert (requests, [(error.code, error.line) for error in errors]) == ([], [("too_many_values", 12)])


async def test_other_requests_are_served_while_long_lines_are_checked(sdk: AsyncOpenAI) -> None:
    """The check of a line with 6,000 messages takes 30 ms, and the loop stood still for twenty of them."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": str(number)} for number in range(6_001)]
    inputs = [request(str(number), CHAT, messages=messages) for number in range(20)]
    creating = asyncio.create_task(create(sdk, inputs))
    assert await longest_pause(creating) < 1 / 3
    await sdk.batches.cancel((await creating).id)


def test_a_file_of_millions_of_lines_takes_little_memory() -> None:
    """A list of its lines would take fifty times its size."""
    content = b"0\n" * 2_000_000
    tracemalloc.start()
    try:
        parse_lines(content, RESPONSES)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < len(content)
