"""Queries and commands about uploaded files."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from tailrace.persistence.blob_gc import BlobCollector
from tailrace.persistence.paging import clamp_limit
from tailrace.persistence.rpc import QueryHandler, fit_in_message
from tailrace.persistence.store import Store
from tailrace.proto.errors import not_found
from tailrace.proto.files import CreateFile, DeleteFile, FilePage, FileRecord, GetFile, ListFiles
from tailrace.proto.ids import Tenant

LIMIT_MAX = 1_000


class FileQueries:
    """Answers for one tenant at a time; files of other tenants, and expired ones, do not exist for it.

    Each query raises StoreError.
    """

    def __init__(self, store: Store, blobs: BlobCollector, now: Callable[[], Awaitable[datetime]]) -> None:
        """`now` returns the time of the log's clock."""
        self._store = store
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
        await self._store.put_file(tenant, new.record)
        return new.record

    async def file(self, tenant: Tenant, query: GetFile) -> FileRecord:
        """Returns an uploaded file that has not expired. Raises Refused if the tenant has none with this id."""
        found = await self._store.file(tenant, query.file, await self._now())
        if found is None:
            raise not_found("file")
        return found

    async def files(self, tenant: Tenant, query: ListFiles) -> FilePage:
        """Returns a page of files, as many as fit in one message; files that have expired are left out."""
        limit = clamp_limit(query.limit, LIMIT_MAX)
        found = await self._store.files(tenant, query, limit + 1, await self._now())
        page, following = await fit_in_message(found, limit)
        return FilePage(page, has_more=following is not None)

    async def delete(self, tenant: Tenant, what: DeleteFile) -> FileRecord:
        """Deletes the file's record, and its content once no request has it. Raises Refused if it does not exist."""
        found = await self.file(tenant, GetFile(what.file))
        await self._store.delete_files(tenant, [what.file])
        await self._blobs.collect(tenant)
        return found
