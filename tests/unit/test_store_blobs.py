"""Limits and storage shares count the bytes of a blob, also if the blob store fails."""

from contextlib import suppress
from typing import Any

import pytest

from tailrace.gateway.auth.admission import Admissions, Limiter, Share
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.proto.errors import LogError, LogFull, LogUnavailable
from tailrace.proto.ids import Tenant, TurnId, TurnKey

OURS = Tenant("ours")


class Pins:
    async def pin(self, *_: object) -> None:
        pass


class FailingStore:
    def __init__(self, failure: LogError) -> None:
        self._failure = failure

    async def put(self, *_: object, **_options: object) -> None:
        raise self._failure


class CountedShare(Share):
    """A share that counts bytes."""

    def __init__(self) -> None:
        self.checked = self.added = 0

    def check(self, _: Tenant, size: int) -> None:
        self.checked += size

    def add(self, _: Tenant, size: int) -> None:
        self.added += size


@pytest.mark.parametrize(("failure", "is_counted"), [(LogUnavailable("no reply"), True), (LogFull("full"), False)])
async def test_blobs_that_may_be_stored_although_their_upload_failed_count_for_the_share(
    failure: LogError, is_counted: bool
) -> None:
    store: Any = FailingStore(failure)
    pins: Any = Pins()
    limiter = Limiter()
    limiter.blob_share = share = CountedShare()
    blobs = RequestBlobs(store, pins, Admissions(limiter), 100)
    with suppress(type(failure)):
        await blobs.put(TurnKey(OURS, TurnId("1")), {"a": b"123456"}, {"a"}, None)
    assert (share.checked, share.added) == (6, 6 if is_counted else 0)
