"""Uploaded files in messages, named by their ids: the model gets their contents."""

import base64
from typing import Any

import anthropic
import msgspec
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tailrace.features.files.inline_files import source_of
from tailrace.proto.ids import new_id
from tests.harness.processes import Process
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

DIALECT = "files and batches"
FEATURE = "`file_id` in a message"
PDF = b"%PDF-1.7 not much of it"
PNG = b"\x89PNG\r\n\x1a\n"
MODEL = "claude-haiku-5-5"
QUESTION = "#sim words=1 rate=0"


def encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


DOCUMENT = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": encode(PDF)}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": encode(PNG)}}
TEXT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "größe"}}


async def read_stored_blocks(gateway: Gateway, turn: str) -> list[dict[str, Any]]:
    """Returns the blocks of the turn's message besides its text."""
    found = (await gateway.client.get(f"/v1/turns/{turn}")).json()
    return [block for block in found["input"][-1]["content"] if block["type"] != "text"]


@pytest.mark.proves(DIALECT, FEATURE, "openai (Python)")
async def test_openai_file_ids(gateway: Gateway, persistence: Process, generator: Process) -> None:
    """Chat completions, responses and the lines of a batch; also after the file was deleted."""
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as sdk:
        pdf = await sdk.files.create(file=("a.pdf", PDF), purpose="user_data")
        # The bytes of an image count, not its label.
        png = await sdk.files.create(file=("a.jpg", PNG, "image/jpeg"), purpose="vision")
        text: Any = {"type": "text", "text": QUESTION}
        chat = await sdk.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": [text, {"type": "file", "file": {"file_id": pdf.id}}]}],
        )
        parts: Any = [
            {"type": "input_text", "text": QUESTION},
            {"type": "input_image", "file_id": png.id, "detail": "auto"},
            {"type": "input_file", "file_id": pdf.id},
        ]
        response = await sdk.responses.create(model=MODEL, input=[{"role": "user", "content": parts}])
        parts[1]["file_id"] = f"file-{new_id()}"
        with pytest.raises(openai.NotFoundError) as unknown:
            await sdk.responses.create(model=MODEL, input=[{"role": "user", "content": parts}])
        assert (unknown.value.code, unknown.value.param) == ("file_not_found", "file_id")
        parts[1]["file_id"] = pdf.id
        with pytest.raises(openai.BadRequestError, match="is not an image"):
            await sdk.responses.create(model=MODEL, input=[{"role": "user", "content": parts}])
        await sdk.files.delete(pdf.id)
        await sdk.files.delete(png.id)
    document = {"title": "a.pdf", **DOCUMENT}
    assert await read_stored_blocks(gateway, chat.id.removeprefix("chatcmpl-")) == [document]
    assert await read_stored_blocks(gateway, response.id.removeprefix("resp_")) == [IMAGE, document]


@pytest.mark.proves(DIALECT, FEATURE, "anthropic (Python)")
async def test_anthropic_file_ids(gateway: Gateway, persistence: Process, generator: Process) -> None:
    """Messages, their tool results, the requests of a batch, and `count_tokens`."""
    async with AsyncAnthropic(base_url=gateway.url, api_key=KEY) as sdk:
        made = await sdk.beta.files.upload(file=("a.txt", "größe".encode(), "text/plain"))
        block: Any = {"type": "document", "source": {"type": "file", "file_id": made.id}, "title": "of mine"}
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, block]}]
        answer = await sdk.beta.messages.create(model=MODEL, max_tokens=9, messages=messages)
        counted = await sdk.beta.messages.count_tokens(model=MODEL, messages=messages)
        inline: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION}, {**TEXT, "title": "of mine"}]}]
        assert counted == await sdk.beta.messages.count_tokens(model=MODEL, messages=inline)
        result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [block]}
        call = {"type": "tool_use", "id": "toolu_1", "name": "read", "input": {}}
        history: Any = [
            *messages,
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result, {"type": "text", "text": QUESTION}]},
        ]
        later = await sdk.beta.messages.create(model=MODEL, max_tokens=9, messages=history)
        params: Any = {"model": MODEL, "max_tokens": 9, "messages": messages}
        unknown = msgspec.json.decode(msgspec.json.encode(params).replace(made.id.encode(), b"file_011"))
        batch = await sdk.messages.batches.create(
            requests=[{"custom_id": "one", "params": params}, {"custom_id": "two", "params": unknown}]
        )
        await gateway.client.get(f"/v1/turns/{batch.id.removeprefix('msgbatch_')}/events")
        types = [(one.custom_id, one.result.type) async for one in await sdk.messages.batches.results(batch.id)]
        assert types == [("two", "errored"), ("one", "succeeded")]
        with pytest.raises(anthropic.NotFoundError, match="no file has the id 'file_011': upload it"):
            await sdk.beta.messages.create(**unknown)
    document = {**TEXT, "title": "of mine"}
    assert await read_stored_blocks(gateway, answer.id.removeprefix("msg_")) == [document]
    (stored_result,) = await read_stored_blocks(gateway, later.id.removeprefix("msg_"))
    assert stored_result["content"] == [document]


async def test_files_of_a_request_are_bounded(gateway: Gateway, persistence: Process) -> None:
    """A file that is named many times counts each time, as it is sent to the model each time."""
    form = {"purpose": "user_data"}
    # Six bytes each, as the model receives them.
    content = b"\x01" * 160_000
    made = (await gateway.client.post("/v1/files", data=form, files={"file": ("a.txt", content)})).json()["id"]
    block = {"type": "document", "source": {"type": "file", "file_id": made}}
    body = {"messages": [{"role": "user", "content": [block] * 40}]}
    answer = await gateway.client.post("/v1/turns", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


@pytest.fixture
async def narrow_gateway(system: System, new_gateway: NewGateway, persistence: Process, generator: Process) -> Gateway:
    """A gateway that accepts bodies of 2,000 bytes."""
    return await new_gateway(system.nats_url, body_bytes_max=2_000)


async def upload(gateway: Gateway, purpose: str, content: bytes) -> str:
    files = {"file": ("a.txt", content)}
    return str((await gateway.client.post("/v1/files", data={"purpose": purpose}, files=files)).json()["id"])


@pytest.mark.parametrize("path", ["/v1/turns", "/v1/messages/count_tokens", "/v1/turn-batches"])
async def test_a_body_and_its_files_are_bounded_together(narrow_gateway: Gateway, path: str) -> None:
    file = await upload(narrow_gateway, "user_data", b"x" * 1_000)
    document = {"type": "document", "source": {"type": "file", "file_id": file}}
    for chars, is_accepted in ((1, True), (900, False)):
        body: dict[str, Any] = {
            "model": MODEL,
            "messages": [{"role": "user", "content": [document, {"type": "text", "text": "x" * chars}]}],
        }
        if path == "/v1/turn-batches":
            body = {"requests": [{"custom_id": "one", "params": body}]}
        answer = await narrow_gateway.client.post(path, json=body)
        assert answer.is_success if is_accepted else answer.status_code == 413, answer.text


async def test_the_input_file_of_a_batch_and_the_files_of_its_lines_are_bounded_together(
    narrow_gateway: Gateway,
) -> None:
    """A line above the limit is refused."""
    file = await upload(narrow_gateway, "user_data", b"x" * 1_000)
    for chars, refused in ((1, 0), (900, 1)):
        parts = [{"type": "file", "file": {"file_id": file}}, {"type": "text", "text": "x" * chars}]
        body = {"model": MODEL, "messages": [{"role": "user", "content": parts}]}
        line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": body}
        lines = await upload(narrow_gateway, "batch", msgspec.json.encode(line))
        new = {"input_file_id": lines, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        answer = await narrow_gateway.client.post("/v1/batches", json=new)
        assert answer.json()["request_counts"]["failed"] == refused, answer.text


async def test_files_of_the_operators_workspace_are_not_passed_on(gateway: Gateway, persistence: Process) -> None:
    upload = {"type": "container_upload", "file_id": "file_011CNha8iCJcU1wXNR6q4V8w"}
    image = {"type": "image", "source": {"type": "file", "file_id": "file_011CNha8iCJcU1wXNR6q4V8w"}}
    inner = {"type": "document", "source": {"type": "content", "content": [image]}}
    for block, code in ((upload, "request_invalid"), (inner, "file_not_found")):
        body = {"messages": [{"role": "user", "content": [block]}]}
        answer = await gateway.client.post("/v1/turns", json=body)
        assert (answer.is_error, answer.json()["error"]["code"]) == (True, code)


@pytest.mark.parametrize(
    ("content", "media_type", "kind"),
    [
        (PDF, "application/pdf", "base64"),
        (PNG, "image/png", "base64"),
        (b"a: 1", "application/yaml", "text"),
        (b"<svg/>", "image/svg+xml", "text"),
        (b"", "application/octet-stream", "text"),
        (b"\xff", "application/octet-stream", None),
    ],
)
def test_sources(content: bytes, media_type: str, kind: str | None) -> None:
    source = source_of(content, media_type)
    assert (source and source["type"]) == kind
