"""Replaces references to uploaded files in messages by the contents of the files, as Anthropic's inline sources.

A block refers to a file with the source `{"type": "file", "file_id": …}`. A turn stores the content and not the id, so
the file may be deleted after the turn was accepted.
"""

import asyncio
import base64
import mimetypes
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from tailrace.features.files.records import FileRecord, GetFile
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX, LargeBodies
from tailrace.gateway.turns.file_references import find_files
from tailrace.gateway.turns.image_types import image_type
from tailrace.proto.blobs import Blob
from tailrace.proto.entries import Message
from tailrace.proto.errors import BlobUnknown, Refused
from tailrace.proto.ids import is_token
from tailrace.proto.nats import BlobStore
from tailrace.proto.ownership import Scope
from tailrace.protocols.common.media_types import IMAGES, PDF, PLAIN, accepted_type

Block = dict[str, Any]
Content = str | list[Block]

UNKNOWN_TYPE = "application/octet-stream"
# Each file costs a query to the database.
FILES_MAX = 100


class UploadedFiles:
    """The contents of files that clients have uploaded to `/v1/files`."""

    def __init__(
        self, history: HistoryClient, blob_store: BlobStore, large_bodies: LargeBodies, bytes_max: int
    ) -> None:
        self.history = history
        self.blob_store = blob_store
        self.large_bodies = large_bodies
        self.bytes_max = bytes_max

    def open_files(self, scope: Scope, body_bytes: int, holder: AsyncExitStack) -> "InlineFiles":
        """Returns the reader for one request, whose body has `body_bytes` bytes.

        Memory for large files is reserved until `holder` is closed.
        """
        return InlineFiles(self, scope, body_bytes, holder)


class InlineFiles:
    """Reads the files of one request, each once. The body and its files may have `bytes_max` bytes in total."""

    def __init__(self, files: UploadedFiles, scope: Scope, body_bytes: int, holder: AsyncExitStack) -> None:
        self.bytes = 0
        """The size of all contents so far. A file to which two blocks refer counts twice."""
        self._files = files
        self._scope = scope
        self._holder = holder
        self._body_bytes = self._reserved_bytes = body_bytes
        self._records: dict[str, FileRecord] = {}
        """Files whose memory is reserved."""
        self._sources: dict[str, tuple[FileRecord, Block, int]] = {}

    async def insert(self, messages: Sequence[Message]) -> list[Message]:
        """Returns the messages with their files inlined. Raises Refused, LogUnavailable."""
        found = dict.fromkeys(find_files([message.content for message in messages]))
        await self._look_up(file for file in found if file is not None)
        return [msgspec.structs.replace(one, content=await self._inline_content(one.content)) for one in messages]

    async def _look_up(self, files: Iterable[str]) -> None:
        """Looks up files, and reserves the memory of all of them at once. Raises Refused."""
        new = [file for file in files if file not in self._records]
        if len(self._records) + len(new) > FILES_MAX:
            raise Refused("request_invalid", f"a request can have at most {FILES_MAX} files: send fewer")
        records = {file: await self._record(file) for file in new}
        # Checked before the files are read: as base64 they are a third larger.
        self._require_room(sum(record.bytes for record in records.values()))
        large = sum(record.bytes for record in records.values() if record.bytes > SMALL_BYTES_MAX)
        if large:
            await self._files.large_bodies.reserve_more(
                self._holder, self._scope.tenant, large, held=self._reserved_bytes
            )
            self._reserved_bytes += large
        self._records |= records

    async def _inline_content(self, content: Content) -> Content:
        if isinstance(content, str):
            return content
        blocks: list[Block] = []
        for block in content:
            match block:
                case {"type": "document" | "image", "source": {"type": "file", "file_id": str(file)}}:
                    blocks.append(await self._block(block, file))
                case {"type": "tool_result", "content": list(inner)}:
                    blocks.append({**block, "content": await self._inline_content(inner)})
                case {"type": "document", "source": {"type": "content", "content": list(inner)} as source}:
                    blocks.append({**block, "source": {**source, "content": await self._inline_content(inner)}})
                case {"type": "container_upload"}:
                    # Anthropic would look for the file in the operator's workspace, which all tenants share.
                    raise Refused(
                        "request_invalid", "`container_upload` is not supported: send the file as a `document`"
                    )
                case _:
                    blocks.append(block)
        return blocks

    async def _block(self, block: Block, file: str) -> Block:
        if file not in self._sources:
            self._sources[file] = await self._read(file)
        record, source, size = self._sources[file]
        self._count(size)
        if source.get("media_type") in IMAGES:
            # The block may be a document, whose other fields Anthropic refuses in an image.
            kept = {name: value for name, value in block.items() if name == "cache_control"}
            return {"type": "image", "source": source, **kept}
        if block["type"] == "image":
            raise Refused("request_invalid", f"the file `{file}` is not an image: use {', '.join(sorted(IMAGES))}")
        return {"title": record.filename, **block, "source": source}

    async def _record(self, file: str) -> FileRecord:
        if not is_token(file):
            raise _unknown(file)
        try:
            return await self._files.history.query(self._scope, GetFile(file))
        except Refused as error:
            raise (_unknown(file) if error.code == "file_not_found" else error) from error

    async def _read(self, file: str) -> tuple[FileRecord, Block, int]:
        """Returns a file's record, its content as a source, and the size of this source as JSON. Raises Refused."""
        record = self._records[file]
        try:
            content = await self._files.blob_store.read(self._scope.tenant, Blob(record.sha256, record.bytes))
        except BlobUnknown as error:
            raise _unknown(file) from error
        # In a thread: 30 MB take 40 ms, which would stop all streams of the event loop.
        source = await asyncio.to_thread(source_of, content, image_type(content) or media_type_of(record))
        if source is None:
            kinds = ", ".join(sorted(IMAGES))
            raise Refused(
                "request_invalid", f"the file `{file}` has an unsupported type: use a PDF, UTF-8 text or {kinds}"
            )
        # Measured as JSON, in which a control character becomes six bytes.
        return record, source, await asyncio.to_thread(lambda: len(msgspec.json.encode(source)))

    def _count(self, size: int) -> None:
        self._require_room(size)
        self.bytes += size

    def _require_room(self, size: int) -> None:
        if self._body_bytes + self.bytes + size > self._files.bytes_max:
            most = self._files.bytes_max
            raise Refused(
                "body_too_large",
                f"the body and its files have more than {most} bytes in total: send fewer or smaller files",
            )


def media_type_of(record: FileRecord) -> str:
    """Returns the media type of the upload; if that is unknown, the type that the file name suggests."""
    media_type = accepted_type(record.media_type)
    return media_type if media_type != UNKNOWN_TYPE else mimetypes.guess_type(record.filename)[0] or UNKNOWN_TYPE


def source_of(content: bytes, media_type: str) -> Block | None:
    """Returns the inline source of a PDF, an image or a text; None for any other content."""
    if media_type == PDF or media_type in IMAGES:
        return {"type": "base64", "media_type": media_type, "data": base64.b64encode(content).decode()}
    try:
        return {"type": "text", "media_type": PLAIN, "data": content.decode()}
    except UnicodeDecodeError:
        return None


def _unknown(file: str) -> Refused:
    message = f"no file has the id {file[:64]!r}: upload it with POST /v1/files"
    return Refused("file_not_found", message, param="file_id")
