"""The contents of uploaded files in place of their ids: their memory, their media types, and a server without them."""

import asyncio
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tailrace.features.files.inline_files import UploadedFiles, media_type_of
from tailrace.features.files.records import FileRecord, GetFile
from tailrace.gateway.http import large_bodies
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX, LargeBodies
from tailrace.proto.entries import Message
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.protocols.common.media_types import ALIASES


class LargeFiles:
    """Any file, in history and blob store."""

    content = b"x" * (SMALL_BYTES_MAX + 1)

    async def query(self, _: Scope, query: GetFile) -> FileRecord:
        await asyncio.sleep(0)
        return FileRecord(
            file=query.file,
            sha256="",
            bytes=len(self.content),
            filename="a.txt",
            media_type="text/plain",
            purpose="user_data",
            created_at=datetime.now(UTC),
            expires_at=None,
        )

    async def read(self, *_: object) -> bytes:
        return self.content


async def test_a_message_with_a_file_keeps_its_other_field() -> None:
    services, memory = cast("Any", LargeFiles()), LargeBodies(bytes_max=2**30, timeout_s=5)
    files = UploadedFiles(services, services, memory, bytes_max=2**30)
    content = [{"type": "document", "source": {"type": "file", "file_id": "file-1"}}]
    async with AsyncExitStack() as holder:
        reader = files.open_files(Scope(Tenant("a"), WHOLE), 2, holder)
        (inlined,) = await reader.insert([Message("user", content, {"effort": "low"})])
    assert (inlined.role, inlined.output_config) == ("user", {"effort": "low"})


async def test_the_memory_of_all_files_of_a_request_is_reserved_at_once() -> None:
    """Otherwise two requests could wait for each other, each with its first file."""
    services, size = cast("Any", LargeFiles()), len(LargeFiles.content)
    memory = LargeBodies(bytes_max=2 * large_bodies.COPIES * 2 * size, timeout_s=30)
    files = UploadedFiles(services, services, memory, bytes_max=3 * size)
    content = [{"type": "document", "source": {"type": "file", "file_id": f"file-{number}"}} for number in "12"]

    async def read() -> int:
        async with AsyncExitStack() as holder:
            reader = files.open_files(Scope(Tenant("a"), WHOLE), 2, holder)
            await reader.insert([Message("user", content)])
            return reader.bytes

    assert min(await asyncio.gather(read(), read())) > 2 * size
    assert memory.free == 2 * large_bodies.COPIES * 2 * size


async def test_an_empty_file_id_is_an_unknown_file() -> None:
    services = cast("Any", LargeFiles())
    files = UploadedFiles(services, services, LargeBodies(bytes_max=2**20, timeout_s=5), bytes_max=2**20)
    content = [{"type": "document", "source": {"type": "file", "file_id": ""}}]
    async with AsyncExitStack() as holder:
        with pytest.raises(Refused, match="no file has the id ''"):
            await files.open_files(Scope(Tenant("a"), WHOLE), 2, holder).insert([Message("user", content)])


@pytest.mark.parametrize(("name", "accepted"), ALIASES.items())
def test_a_file_has_the_media_type_that_claude_accepts(name: str, accepted: str) -> None:
    """Names are compared without case (RFC 2045, section 5.1)."""
    assert {media_type_of(record_of(given)) for given in (name, name.upper())} == {accepted}


def record_of(media_type: str) -> FileRecord:
    return FileRecord(
        file="file-1",
        sha256="0" * 64,
        bytes=1,
        filename="a",
        media_type=media_type,
        purpose="user_data",
        created_at=datetime.now(UTC),
        expires_at=None,
    )
