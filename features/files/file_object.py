"""The file object of OpenAI's API, and that of Anthropic's for requests with the header `anthropic-version`.

Sources: OpenAI's API reference, "Files"; Anthropic's docs, "Files API".
"""

from typing import Any

from starlette.requests import Request

from tailrace.features.files.records import FileRecord


def is_for_anthropic(request: Request) -> bool:
    """Returns whether the response has the format of Anthropic's API."""
    return "anthropic-version" in request.headers


def render_file(record: FileRecord, request: Request) -> dict[str, Any]:
    """Returns the file object in the format that the request has; with Tailrace's `owner` if a user has one."""
    owner = {} if record.owner is None else {"owner": record.owner}
    if is_for_anthropic(request):
        return {
            "id": record.file,
            "type": "file",
            "filename": record.filename,
            "mime_type": record.media_type,
            "size_bytes": record.bytes,
            "created_at": record.created_at,
            "downloadable": True,
            "expires_at": record.expires_at,
            **owner,
        }
    return {
        "id": record.file,
        "object": "file",
        "bytes": record.bytes,
        "created_at": int(record.created_at.timestamp()),
        "expires_at": None if record.expires_at is None else int(record.expires_at.timestamp()),
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
        **owner,
    }
