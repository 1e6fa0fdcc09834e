"""Uploaded files: their routes, and the step of a submission that replaces ids of files by their contents.

The routes have OpenAI's format, and Anthropic's for requests with the header `anthropic-version`.

Sources: OpenAI's API reference, "Files"; Anthropic's docs, "Files API".
"""

import re
from datetime import timedelta

import msgspec
from starlette.responses import Response
from starlette.types import ASGIApp

from tailrace.features.files.file_object import is_for_anthropic, render_file
from tailrace.features.files.form import Form, FormFile, read_form
from tailrace.features.files.inline_files import UploadedFiles
from tailrace.features.files.records import CreateFile, DeleteFile, FileRecord, GetFile, ListFiles
from tailrace.gateway.auth.admission import Admissions
from tailrace.gateway.auth.api_request import ApiRequest
from tailrace.gateway.clients.blobs import headers_of
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.hash_body import hash_body
from tailrace.gateway.http.json_response import json_response
from tailrace.gateway.http.parameters import AFTER_ITEM, KEY_SCHEMA, ORDER, SENT_BY_SDKS
from tailrace.gateway.http.route import Json, Route, Section, header, query
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.resources.create_once import create_once
from tailrace.gateway.resources.paging import is_newest_first, limit_of, list_page, require_one_cursor
from tailrace.gateway.services import Gateway
from tailrace.gateway.streaming.download import Download
from tailrace.gateway.streaming.reader import Reader, StreamContext
from tailrace.gateway.turns.optional_steps import OptionalSteps
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.proto.blobs import Blob
from tailrace.proto.errors import BlobUnknown, Refused, not_found
from tailrace.proto.ids import TurnId, TurnKey, is_token
from tailrace.proto.nats import BlobStore, Claims, TurnLog
from tailrace.proto.runtime.settings import NoSettings
from tailrace.protocols.common.examples import FILE, UNIX_S

PURPOSES = ("assistants", "batch", "user_data", "vision")
FILENAME_CHARS_MAX = 255
MEDIA_TYPE = re.compile(r"[\x21-\x7e][\x20-\x7e]{0,126}")
LIFE_FIELDS = ("expires_after[anchor]", "expires_after[seconds]", "expires_in_seconds")
LIFE = re.compile(r"[0-9]{4,7}")
# OpenAI's limits: an hour and thirty days.
LIFE_S_MIN, LIFE_S_MAX = 3600, 30 * 24 * 3600
LIST_MAX = 1_000
CURSORS = ("after", "after_id", "page")
FILE_ID = re.compile(r"file-[0-9a-f-]{36}")


async def post(
    request: ApiRequest,
    request_blobs: RequestBlobs,
    blob_store: BlobStore,
    admissions: Admissions,
    log_fullness: LogFullness,
    history: HistoryClient,
    claims: Claims,
    log: TurnLog,
) -> Response:
    """`POST /v1/files`: uploads a file, as `multipart/form-data` with the fields `file` and, for OpenAI, `purpose`.

    A message can then name the file by its id. The file belongs to the tenant of the key.
    """
    form, is_anthropic = await read_form(request), is_for_anthropic(request)
    file, purpose = require_file(form), _purpose(form, is_anthropic=is_anthropic)
    life = await _life(form, blob_store)
    log_fullness.require_room()
    sha256, media_type = await hash_body(file.content), file.media_type or "application/octet-stream"
    # The clock by which persistence deletes files that have expired.
    now = await log.now()

    async def create(name: str) -> FileRecord:
        record = FileRecord(
            file=name,
            sha256=sha256,
            bytes=len(file.content),
            filename=file.filename,
            media_type=media_type,
            purpose=purpose,
            created_at=now,
            expires_at=None if life is None else now + life,
            owner=request.principal.user,
        )
        # Not a turn: the pin holds until the file's record refers to the blob.
        key = TurnKey(request.access.tenant, TurnId(name))
        async with request_blobs.hold_pins(key):
            async with admissions.count(request.principal) as admission:
                await request_blobs.put(key, {sha256: file.content}, {sha256}, admission, is_renewed=True)
            await history.query(request.access, CreateFile(record))
        return record

    async def find(name: str) -> FileRecord:
        return await history.query(request.access, GetFile(name))

    # These fields and not the body, because a repeated form has another boundary.
    given = msgspec.json.encode([sha256, file.filename, media_type, purpose])
    made = await create_once(request, given, claims, "file", None, create, find, id_prefix="file-", derives_key=True)
    return json_response(render_file(made, request))


async def list_files(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/files`: the files, newest first, in pages: after the file `after` (Anthropic: `page` or `after_id`).

    In the format of OpenAI's API, or of Anthropic's if the request has the header `anthropic-version`.
    """
    parameters, limit = request.query_params, limit_of(request, 200, LIST_MAX)
    is_oldest_first = not is_newest_first(request, "desc")
    require_one_cursor(request, *CURSORS)
    after = next((parameters[name] for name in CURSORS if name in parameters), None)
    # Whether the file still exists does not matter: a client may delete each file that it has listed.
    if after is not None and FILE_ID.fullmatch(after) is None:
        raise Refused("cursor_invalid", "the cursor is not the id of a file: send the id of the last one of the page")
    query = ListFiles(after, limit, parameters.get("purpose"), is_oldest_first=is_oldest_first)
    found = await history.query(request.access, query)
    data = [render_file(one, request) for one in found.files]
    page = {"object": "list", **list_page(data, has_more=found.has_more)}
    return json_response({**page, "next_page": page["last_id"] if found.has_more else None})


async def get(request: ApiRequest, history: HistoryClient) -> Response:
    """`GET /v1/files/{file_id}`: the name, size and times of one file.

    In the format of OpenAI's API, or of Anthropic's if the request has the header `anthropic-version`.
    """
    return json_response(render_file(await _file_of(request, history), request))


async def get_content(
    request: ApiRequest, history: HistoryClient, blob_store: BlobStore, streams: StreamContext
) -> ASGIApp:
    """`GET /v1/files/{file_id}/content`: the content of one file."""
    record = await _file_of(request, history)
    try:
        await blob_store.size(request.access.tenant, record.sha256)
    except BlobUnknown as error:
        raise not_found("file") from error
    blob = Blob(record.sha256, record.bytes)
    return Download(Reader(streams, request), blob_store.chunks(request.access.tenant, blob), headers_of(blob))


async def delete(request: ApiRequest, history: HistoryClient) -> Response:
    """`DELETE /v1/files/{file_id}`: deletes a file. Turns and batches that were made of it stay.

    A message that names the deleted file is refused.
    """
    file = (await history.query(request.access, DeleteFile(_id_of(request)))).file
    if is_for_anthropic(request):
        return json_response({"id": file, "type": "file_deleted"})
    return json_response({"id": file, "object": "file", "deleted": True})


def require_file(form: Form) -> FormFile:
    """Returns the form's file. Raises Refused without a file, and for an unusable name or type."""
    file = form.file
    if file is None or file.field != "file":
        raise Refused("request_invalid", "`file` is missing: send the content as a part with a filename", param="file")
    if not file.content:
        raise Refused("request_invalid", "`file` is empty", param="file")
    if not (0 < len(file.filename) <= FILENAME_CHARS_MAX and file.filename.isprintable()):
        message = f"the filename must have 1 to {FILENAME_CHARS_MAX} printable characters"
        raise Refused("request_invalid", message, param="file")
    if file.media_type and MEDIA_TYPE.fullmatch(file.media_type) is None:
        raise Refused("request_invalid", "the Content-Type of `file` is not a media type", param="file")
    return file


def _purpose(form: Form, *, is_anthropic: bool) -> str:
    known = LIFE_FIELDS[2:] if is_anthropic else ("purpose", *LIFE_FIELDS[:2])
    for name in form.fields:
        if name not in known:
            allowed = ", ".join(("file", *known))
            raise Refused("request_invalid", f"unknown field `{name[:64]}`; there are {allowed}", param=name[:64])
    if is_anthropic:
        return "user_data"
    purpose = form.fields.get("purpose")
    if purpose not in PURPOSES:
        raise Refused("request_invalid", f"`purpose` must be one of {', '.join(PURPOSES)}", param="purpose")
    return purpose


async def _life(form: Form, blob_store: BlobStore) -> timedelta | None:
    """Returns how long the file is kept: as long as blobs are, or shorter if requested; None: without end."""
    kept = await blob_store.lifetime()
    anchor, *several = map(form.fields.get, LIFE_FIELDS)
    seconds = next(filter(None, several), None)
    if seconds is not None or anchor is not None:
        is_valid = anchor in (None, "created_at") and seconds is not None and LIFE.fullmatch(seconds) is not None
        if not is_valid or not LIFE_S_MIN <= int(seconds or 0) <= LIFE_S_MAX:
            message = f"a file expires {LIFE_S_MIN} to {LIFE_S_MAX} seconds after `created_at`"
            raise Refused("request_invalid", message, param="expires_after")
        kept = min(kept, timedelta(seconds=int(seconds or 0)))
    return None if kept == timedelta.max else kept


async def _file_of(request: ApiRequest, history: HistoryClient) -> FileRecord:
    return await history.query(request.access, GetFile(_id_of(request)))


def _id_of(request: ApiRequest) -> str:
    file: str = request.path_params["file_id"]
    if not is_token(file):
        raise not_found("file")
    return file


SECTION = Section("files", "https://platform.openai.com/docs/api-reference/files")
STORED_FILE = {"id": FILE, "object": "file", "filename": "report.pdf", "bytes": 8120, "created_at": UNIX_S}
FILE_LIST = {"object": "list", "data": [STORED_FILE], "has_more": False}
DELETED = {"id": FILE, "object": "file", "deleted": True}
FORM: Json = {
    "type": "object",
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "contentMediaType": "application/octet-stream",
            "description": "The content of the file.",
        },
        "purpose": {"type": "string", "description": "The purpose of the file.", "examples": ["user_data"]},
        "expires_after[anchor]": {
            "type": "string",
            "description": "When the lifetime begins (OpenAI).",
            "examples": ["created_at"],
        },
        "expires_after[seconds]": {
            "type": "string",
            "description": "The lifetime in seconds (OpenAI).",
            "examples": ["86400"],
        },
        "expires_in_seconds": {
            "type": "string",
            "description": "The lifetime in seconds (Anthropic).",
            "examples": ["86400"],
        },
    },
    "required": ["file"],
}
KEY_OF_FILE = header(
    "Idempotency-Key",
    "A repeated request with the same key and file gets the same file; `auto` derives the key from the file's "
    "content, name, type and purpose.",
    **KEY_SCHEMA,
)
LISTING_FILES = (
    AFTER_ITEM,
    query("after_id", "The same as `after`, as Anthropic's SDKs send it."),
    query("page", "The `next_page` of the previous page, as Anthropic's SDKs send it."),
    query("limit", "The maximum number of files.", type="integer", minimum=1, maximum=1000),
    ORDER,
    query("purpose", "Only files with this purpose."),
    *SENT_BY_SDKS,
)

ROUTES = [
    Route("GET", "/v1/files", list_files, "read", SECTION, result=FILE_LIST, parameters=LISTING_FILES),
    Route(
        "POST",
        "/v1/files",
        post,
        "write",
        SECTION,
        form=FORM,
        result=STORED_FILE,
        parameters=(KEY_OF_FILE, *SENT_BY_SDKS),
    ),
    Route("GET", "/v1/files/{file_id}", get, "read", SECTION, result=STORED_FILE, parameters=SENT_BY_SDKS),
    Route("DELETE", "/v1/files/{file_id}", delete, "manage", SECTION, result=DELETED, parameters=SENT_BY_SDKS),
    Route(
        "GET",
        "/v1/files/{file_id}/content",
        get_content,
        "read",
        SECTION,
        streams="application/octet-stream",
        parameters=SENT_BY_SDKS,
    ),
]


def start(gateway: Gateway, _settings: NoSettings) -> Parts:
    """Makes the step that reads the files to which messages refer."""
    files = UploadedFiles(
        gateway.history, gateway.blob_store, gateway.bodies.large_bodies, gateway.settings.body_bytes_max
    )
    return Parts(steps=OptionalSteps(open_files=files.open_files))


FEATURE = Feature(NoSettings, start, routes=ROUTES)
