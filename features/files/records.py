"""Records of uploaded files, and the queries and commands about them that persistence answers.

A file's content is a blob (PROTOCOL R33), and its row refers to that blob as a turn does (PROTOCOL R34).
"""

from datetime import datetime
from typing import ClassVar

import msgspec

from tailrace.proto.records import Query


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An uploaded file, whose content is a blob. Without `expires_at` it is kept until it is deleted."""

    file: str
    sha256: str
    bytes: int
    filename: str
    media_type: str
    purpose: str
    created_at: datetime
    expires_at: datetime | None
    owner: str | None = None
    """The user of the credential that has uploaded it. None: the tenant."""


class FilePage(msgspec.Struct, frozen=True):
    """A page of files."""

    files: list[FileRecord]
    has_more: bool


class CreateFile(Query[FileRecord], frozen=True):
    """Stores the record of an uploaded file whose content is stored and has a hold (R34)."""

    query: ClassVar[str] = "new_file"
    owned: ClassVar[tuple[str, ...] | None] = ()
    record: FileRecord


class GetFile(Query[FileRecord], frozen=True):
    """One file. Refused: file_not_found."""

    query: ClassVar[str] = "file"
    owned: ClassVar[tuple[str, ...] | None] = ()
    file: str


class ListFiles(Query[FilePage], frozen=True):
    """A page of files after the file `after`, newest first unless `is_oldest_first`; if set, only of `purpose`."""

    query: ClassVar[str] = "files"
    owned: ClassVar[tuple[str, ...] | None] = ()
    after: str | None = None
    limit: int = 200
    purpose: str | None = None
    is_oldest_first: bool = False


class DeleteFile(Query[FileRecord], frozen=True):
    """Deletes a file, and its content unless a turn or another file refers to it. Refused: file_not_found."""

    query: ClassVar[str] = "delete_file"
    owned: ClassVar[tuple[str, ...] | None] = ()
    file: str
