"""/v1/files with the SDKs of OpenAI and Anthropic: upload, list, read and delete."""

import encodings
from datetime import UTC, datetime, timedelta

import anthropic
import openai
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tailrace.features.files.persistence import FileTable
from tailrace.proto.ids import Tenant, new_id
from tests.harness.open_store import open_store
from tests.harness.system import System
from tests.harness.until import until
from tests.integration.conftest import KEY, Gateway, on_shared_loop

DIALECT = "files and batches"
PYTHON = "openai (Python)"
# More than one chunk of a blob, with every byte, and what looks like the end of a part.
CONTENT = bytes(range(256)) * 4_000 + b"\r\n--boundary--\r\n"


@pytest.mark.proves(DIALECT, "files", PYTHON)
async def test_openai_files(sdk: AsyncOpenAI, gateway: Gateway) -> None:
    """The content comes back byte for byte, the SDK pages through the list, and a deleted file is gone."""
    made = [
        await sdk.files.create(file=(f"Größe {n}.bin", CONTENT + bytes([n])), purpose="user_data") for n in range(3)
    ]
    first = made[0]
    assert (first.object, first.filename, first.bytes, first.purpose) == ("file", "Größe 0.bin", 1_024_017, "user_data")
    assert first.expires_at is not None
    assert timedelta(seconds=first.expires_at - first.created_at) == timedelta(days=7)
    assert await sdk.files.retrieve(first.id) == first
    download = await sdk.files.content(first.id)
    assert (download.content, download.response.headers["content-length"]) == (CONTENT + b"\0", str(first.bytes))
    assert [file async for file in sdk.files.list(limit=2)] == made[::-1]
    assert [file async for file in sdk.files.list(limit=2, order="asc")] == made
    assert [file async for file in sdk.files.list(purpose="batch")] == []
    assert (await sdk.files.delete(first.id)).deleted
    for gone in (sdk.files.retrieve(first.id), sdk.files.content(first.id), sdk.files.delete(first.id)):
        with pytest.raises(openai.NotFoundError) as refused:
            await gone
        assert refused.value.code == "file_not_found"
    # Its content was deleted with it, and that of the others was not.
    assert (await gateway.client.get(f"/v1/files/{made[1].id}/content")).content == CONTENT + b"\1"


@pytest.mark.proves(DIALECT, "files", "anthropic (Python)")
async def test_anthropic_files(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """The same files in Anthropic's format, which the header `anthropic-version` selects."""
    async with AsyncAnthropic(base_url=gateway.url, api_key=KEY) as claude:
        made = [await claude.beta.files.upload(file=(f"{n}.txt", b"text", "text/plain")) for n in range(3)]
        assert (made[0].type, made[0].filename, made[0].mime_type, made[0].size_bytes) == (
            "file",
            "0.txt",
            "text/plain",
            4,
        )
        assert [file async for file in claude.beta.files.list(limit=2)] == made[::-1]
        lasting = await claude.beta.files.upload(file=("a.txt", b"a"), expires_in_seconds=3600)
        assert lasting.expires_at == lasting.created_at + timedelta(hours=1)
        assert (await sdk.files.retrieve(made[0].id)).purpose == "user_data"
        # All three have one blob, which stays while one of them refers to it.
        for file in made[:2]:
            assert (await claude.beta.files.delete(file.id)).type == "file_deleted"
        assert await (await claude.beta.files.download(made[2].id)).read() == b"text"
        with pytest.raises(anthropic.NotFoundError):
            await claude.beta.files.retrieve_metadata(made[0].id)


async def test_expired_files_are_deleted(gateway: Gateway, sdk: AsyncOpenAI, system: System, tenant: Tenant) -> None:
    """Its life is at most that of blobs; persistence deletes it then, also if no client asks for it."""
    life = {"anchor": "created_at", "seconds": 3600}
    file = await sdk.files.create(file=("a.txt", b"old"), purpose="user_data", expires_after=life)  # type: ignore[arg-type]
    assert file.expires_at == file.created_at + 3600
    async with open_store(system.database, busy_timeout_s=5) as store:
        async with store.database.transaction() as writer:
            await writer.execute("UPDATE files SET expires_at = 1 WHERE tenant = :tenant", {"tenant": tenant})
        with pytest.raises(openai.NotFoundError):
            await sdk.files.retrieve(file.id)

        async def is_gone() -> bool:
            later = datetime.now(UTC) + timedelta(days=1)
            return tenant not in await FileTable(store).expired_files(later)

        await until(is_gone)


@on_shared_loop
@pytest.mark.parametrize(
    ("form", "file", "part"),
    [
        ({}, ("a.txt", b"text"), "`purpose` must be one of"),
        ({"purpose": "fine-tune"}, ("a.txt", b"text"), "`purpose` must be one of"),
        ({"purpose": "batch", "porpoise": "1"}, ("a.txt", b"text"), "unknown field `porpoise`"),
        ({"purpose": "batch"}, None, "`file` is missing"),
        ({"purpose": "batch"}, ("a.txt", b""), "`file` is empty"),
        ({"purpose": "batch"}, ("a" * 256, b"text"), "1 to 255 printable characters"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, ("a.txt", b"text"), "a file expires 3600 to"),
        ({"purpose": "batch", "expires_after[seconds]": "1"}, ("a.txt", b"text"), "a file expires 3600 to"),
        ({"purpose": "b" * 5_000}, ("a.txt", b"text"), "the form cannot be read"),
    ],
)
async def test_a_wrong_form_is_refused(
    shared_gateway: Gateway, form: dict[str, str], file: tuple[str, bytes] | None, part: str
) -> None:
    other = {"other": ("a.txt", b"text")}
    files = {"file": file} if file else other
    answer = await shared_gateway.client.post("/v1/files", data=form, files=files)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")
    assert part in answer.json()["error"]["message"]


async def test_a_body_that_is_no_form_is_refused(gateway: Gateway) -> None:
    answers = [
        await gateway.client.post("/v1/files", json={}),
        await gateway.client.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}),
    ]
    assert [answer.status_code for answer in answers] == [415, 400]
    assert "multipart/form-data" in answers[0].json()["error"]["message"]


async def test_the_charset_of_a_form_is_not_looked_up(gateway: Gateway) -> None:
    """Python keeps each name of a codec that it has looked up, and some codecs raise other errors than UTF-8."""
    body = (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nx\r\n--b--\r\n'
    )
    cached = encodings._cache  # noqa: SLF001  # Python has no other view of it
    before = len(cached)
    for charset in ("punycode", "undefined", "utf-7", f"unknown-{new_id()}"):
        headers = {"content-type": f"multipart/form-data; boundary=b; charset={charset}"}
        answer = await gateway.client.post("/v1/files", content=body, headers=headers)
        assert (answer.status_code, answer.json()["purpose"]) == (200, "batch")
    assert len(cached) == before


@on_shared_loop
async def test_a_boundary_may_be_longer_than_rfc_2046_allows(shared_gateway: Gateway) -> None:
    """Anthropic's SDK for PHP sends 80 characters."""
    boundary = "b" * 80
    part = 'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\ntext'
    body = f"--{boundary}\r\n{part}\r\n--{boundary}--\r\n"
    headers = {"content-type": f"multipart/form-data; boundary={boundary}", "anthropic-version": "2023-06-01"}
    answer = await shared_gateway.client.post("/v1/files", content=body, headers=headers)
    assert (answer.status_code, answer.json()["filename"]) == (200, "a.txt")


@on_shared_loop
@pytest.mark.parametrize("boundary", ["", "b" * 129, "b;", "\u00e4"])
async def test_an_invalid_boundary_is_refused(shared_gateway: Gateway, boundary: str) -> None:
    headers = {b"content-type": f'multipart/form-data; boundary="{boundary}"'.encode("latin-1")}
    answer = await shared_gateway.client.post("/v1/files", content=b"x", headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_invalid")


async def test_a_repeated_upload_gets_the_same_file(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Also when the form of the repeated one has another boundary; another content is refused."""
    headers = {"Idempotency-Key": new_id()}
    first, again = [
        await sdk.files.create(file=("a.txt", b"text"), purpose="user_data", extra_headers=headers) for _ in range(2)
    ]
    assert again == first
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await sdk.files.create(file=("a.txt", b"other"), purpose="user_data", extra_headers=headers)
    assert refused.value.code == "idempotency_key_reused"
    assert [file.id async for file in sdk.files.list()] == [first.id]


async def test_an_upload_with_an_automatic_key_is_repeated_only_by_the_same_file(
    gateway: Gateway, sdk: AsyncOpenAI
) -> None:
    async def upload(name: str, content: bytes) -> str:
        file = (name, content)
        return (await sdk.files.create(file=file, purpose="user_data", extra_headers={"Idempotency-Key": "auto"})).id

    first = await upload("a.txt", b"text")
    assert await upload("a.txt", b"text") == first
    assert len({first, await upload("a.txt", b"other"), await upload("b.txt", b"text")}) == 3


async def test_the_key_of_an_upload_is_no_key_of_a_turn(gateway: Gateway, sdk: AsyncOpenAI) -> None:
    """Whatever a client puts before it."""
    key = new_id()
    await sdk.files.create(file=("a.txt", b"text"), purpose="user_data", extra_headers={"Idempotency-Key": key})
    for own in (key, f"files:{key}"):
        answer = await gateway.client.post("/v1/turns", json={"message": "hi"}, headers={"Idempotency-Key": own})
        assert answer.status_code == 202, answer.text


@on_shared_loop
@pytest.mark.parametrize("query", ["after=unknown", "after_id=file-1", "after=file-1&page=file-1"])
async def test_a_wrong_cursor_is_refused(shared_gateway: Gateway, query: str) -> None:
    answer = await shared_gateway.client.get(f"/v1/files?{query}")
    assert answer.status_code == 400, answer.text
