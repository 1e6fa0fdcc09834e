"""Limits and storage shares count the bytes of a blob, also if the blob store fails."""

from contextlib import suppress
from typing import Any

import pytest

from tailrace.gateway.limits.storage_share import BLOBS, StorageShare
from tailrace.gateway.turns.store_blobs import RequestBlobs
from tailrace.proto.errors import LogError, LogFull, LogUnavailable, Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import StreamSize

OURS = Tenant("ours")


class Pins:
    async def pin(self, *_: object) -> None:
        pass


class FailingStore:
    def __init__(self, failure: LogError) -> None:
        self._failure = failure

    async def put(self, *_: object, **_options: object) -> None:
        raise self._failure


@pytest.mark.parametrize(("failure", "is_counted"), [(LogUnavailable("no reply"), True), (LogFull("full"), False)])
async def test_blobs_that_may_be_stored_although_their_upload_failed_count_for_the_share(
    failure: LogError, is_counted: bool
) -> None:
    store: Any = FailingStore(failure)
    pins: Any = Pins()
    counters: Any = None
    share = StorageShare(BLOBS, counters, lambda: StreamSize(80, 100), 0.1)
    with suppress(type(failure)):
        await RequestBlobs(store, pins, share, 100).put(TurnKey(OURS, TurnId("1")), {"a": b"123456"}, {"a"}, None)
    if is_counted:
        with pytest.raises(Refused, match="would exceed"):
            share.check(OURS, 6)
    else:
        share.check(OURS, 6)
