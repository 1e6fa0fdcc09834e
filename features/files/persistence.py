"""Uploaded files in the database, and the queries and commands about them. Their contents are blobs."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

from tailrace.features.files.records import CreateFile, DeleteFile, FilePage, FileRecord, GetFile, ListFiles
from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.paging import clamp_limit
from tailrace.persistence.queries import scope_of
from tailrace.persistence.rows import micros, moment
from tailrace.persistence.rpc import QueryHandler, fit_in_message
from tailrace.persistence.run_every import run_beside, run_every
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import LAST_NAME, Store
from tailrace.persistence.tables import Tables
from tailrace.proto.errors import not_found
from tailrace.proto.ids import Tenant
from tailrace.proto.ownership import may_use
from tailrace.proto.resources import DeletedRows
from tailrace.proto.runtime.settings import NoSettings

LIMIT_MAX = 1_000
DELETE_FILES_MAX = 1_000
EXPIRED_MAX = 200
# The time between two searches for expired files.
INTERVAL_S = 2.0


class FileTable:
    """The files of all tenants. Every method raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put_file(self, tenant: Tenant, record: FileRecord) -> None:
        """Inserts a file, and its reference to its blob."""
        columns = {"tenant": tenant, **file_columns(record)}
        async with self._store.write(tenant) as writer:
            await writer.execute("put_file", columns)
            await writer.execute("put_file_use", columns)

    async def file(self, tenant: Tenant, file: str, now: datetime) -> FileRecord | None:
        """Returns the file, or None if it does not exist or has expired by `now`."""
        rows = await self._store.read("file", tenant=tenant, file=file, now=micros(now))
        return file_record(rows[0]) if rows else None

    async def files(self, tenant: Tenant, query: ListFiles, limit: int, now: datetime) -> list[FileRecord]:
        """Returns the files that `query` selects and that have not expired, at most `limit`."""
        order, start = ("oldest_", "") if query.is_oldest_first else ("", LAST_NAME)
        rows = await self._store.read(
            f"{order}files" if query.purpose is None else f"{order}purpose_files",
            tenant=tenant,
            after=start if query.after is None else query.after,
            purpose=query.purpose,
            owner=scope_of(tenant, query).only_owner,
            now=micros(now),
            limit=limit,
        )
        return [file_record(row) for row in rows]

    async def every_file(self, tenant: Tenant) -> list[str]:
        """Returns the ids of all files of a tenant, including expired ones."""
        return [row["file"] for row in await self._store.read("every_file", tenant=tenant)]

    async def delete_files(self, tenant: Tenant, files: Sequence[str]) -> None:
        """Deletes files and releases their blobs, `DELETE_FILES_MAX` in each transaction."""
        for first in range(0, len(files), DELETE_FILES_MAX):
            rows = [{"tenant": tenant, "turn": file} for file in files[first : first + DELETE_FILES_MAX]]
            async with self._store.write(tenant) as writer:
                for statement in ("release_blobs", "delete_blob_uses", "delete_file"):
                    await writer.executemany(statement, rows)
                self._store.database.note_deletion()

    async def expired_files(self, now: datetime) -> dict[Tenant, list[str]]:
        """Returns expired files by their tenant, at most `EXPIRED_MAX`."""
        found: dict[Tenant, list[str]] = {}
        for row in await self._store.read("expired_files", now=micros(now), limit=EXPIRED_MAX):
            found.setdefault(row["tenant"], []).append(row["file"])
        return found


class FileQueries:
    """Answers for one tenant at a time; finds neither files of other tenants nor expired files.

    Each query raises StoreError.
    """

    def __init__(self, store: Store, blobs: BlobCollector, now: Callable[[], Awaitable[datetime]]) -> None:
        """`now` returns the time of the log's clock: a wrong clock of this machine would delete files too early."""
        self._table = FileTable(store)
        self._blobs = blobs
        self._now = now

    def handlers(self) -> list[QueryHandler]:
        """Returns each query with the method that answers it."""
        return [
            (CreateFile, self.create),
            (GetFile, self.file),
            (ListFiles, self.files),
            (DeleteFile, self.delete),
        ]

    async def create(self, tenant: Tenant, new: CreateFile) -> FileRecord:
        """Stores the record of an uploaded file. Its content is stored already."""
        await self._table.put_file(tenant, new.record)
        return new.record

    async def file(self, tenant: Tenant, query: GetFile) -> FileRecord:
        """Returns an uploaded file that has not expired. Raises Refused if there is none of this id."""
        found = await self._table.file(tenant, query.file, await self._now())
        if found is None or not may_use(scope_of(tenant, query), found.owner):
            raise not_found("file")
        return found

    async def files(self, tenant: Tenant, query: ListFiles) -> FilePage:
        """Returns a page of files, as many as fit in one message; files that have expired are left out."""
        limit = clamp_limit(query.limit, LIMIT_MAX)
        found = await self._table.files(tenant, query, limit + 1, await self._now())
        page, following = await fit_in_message(found, limit)
        return FilePage(page, has_more=following is not None)

    async def delete(self, tenant: Tenant, what: DeleteFile) -> FileRecord:
        """Deletes the file's record, and its content once it is unused. Raises Refused if the file does not exist."""
        found = await self.file(tenant, GetFile(what.file, viewer=what.viewer))
        await self._table.delete_files(tenant, [what.file])
        await self._blobs.collect(tenant)
        return found

    async def erase_tenant(self, tenant: Tenant) -> DeletedRows:
        """Deletes all files of a tenant."""
        files = await self._table.every_file(tenant)
        await self._table.delete_files(tenant, files)
        return DeletedRows(files=len(files))

    async def delete_expired(self) -> None:
        """Deletes some expired files of all tenants. The collector purges their blobs."""
        for tenant, files in (await self._table.expired_files(await self._now())).items():
            await self._table.delete_files(tenant, files)


def file_columns(record: FileRecord) -> dict[str, Any]:
    """Returns the columns of a row of `files`, with times in microseconds since 1970."""
    expires_at = None if record.expires_at is None else micros(record.expires_at)
    times = {"created_at": micros(record.created_at), "expires_at": expires_at}
    return msgspec.structs.asdict(record) | times


def file_record(row: Mapping[str, Any]) -> FileRecord:
    """Returns the file in a row of `files`."""
    expires_at = None if row["expires_at"] is None else moment(row["expires_at"])
    return FileRecord(**{**row, "created_at": moment(row["created_at"]), "expires_at": expires_at})


def _start(services: Services, _: NoSettings) -> Parts:
    files = FileQueries(services.store, services.blobs, services.connection.now)
    delete_expired = partial(run_every, INTERVAL_S, files.delete_expired, "the deletion of expired files")
    return Parts(files.handlers(), [partial(run_beside, delete_expired)], erase_tenant=files.erase_tenant)


TABLES = Tables(
    read_queries(__package__),
    erase_user=[("", "release_user_files"), ("", "delete_user_file_uses"), ("files", "delete_user_files")],
)
FEATURE = Feature(NoSettings, _start, TABLES)
