"""A KV bucket: create-if-absent, put, get, compare-and-set and delete. Errors of NATS become LogUnavailable."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import nats.errors
import nats.js.errors
from nats.js.kv import KV_DEL, KV_OP, KeyValue

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Seq
from tailrace.proto.nats import pub_ack
from tailrace.proto.nats.connection import Connection

CREATE_TRIES = 10
STALE_WAIT_S = 0.01
REMOVE_TIMEOUT_S = 2.0
# The deletion of a removed value. It expires, so that the bucket does not fill with the names of deleted keys.
REMOVED = {KV_OP: KV_DEL, pub_ack.LIFE: "1s"}


class Value(NamedTuple):
    """A key's value, and the revision that `update` expects."""

    data: bytes
    revision: int


class Bucket:
    """One of the KV buckets that `stream_configs.buckets` defines.

    Every method raises LogUnavailable when NATS does not answer or refuses.
    """

    def __init__(self, connection: Connection, name: str, content: str) -> None:
        """`content` describes one value in error messages, for example "the idempotency key"."""
        self._connection = connection
        self._name = name
        self._content = content
        self._bucket: KeyValue | None = None

    async def create(self, key: str, data: bytes) -> bytes:
        """Stores `data` unless `key` exists. Returns the value of `key` after that: `data`, or an earlier value.

        If the acknowledgement was lost, the same call again returns the value that the first call has stored. Raises
        LogUnavailable.
        """
        for _ in range(CREATE_TRIES):
            with self._map_errors():
                try:
                    await (await self._open()).create(key, data)
                except (nats.js.errors.KeyWrongLastSequenceError, nats.js.errors.KeyNotFoundError):
                    # KeyNotFound: `create` of nats-py reads the key after the refusal, from a server that lags behind.
                    pass
                else:
                    return data
            found = await self._read(key)
            if found is not None and not await self._is_marker(found):
                return found.data
            if found is not None and await self.update(key, data, found.revision) is not None:
                return data
            # The key exists, but the server that answered the read lags behind (PROTOCOL R14).
            await asyncio.sleep(STALE_WAIT_S)
        raise LogUnavailable(f"{self._content} exists, but no server can read it yet: retry")

    async def get(self, key: str) -> Value | None:
        """Returns the value of `key`; None if there is none or `key` is not a valid name. May be a moment old.

        Raises LogUnavailable.
        """
        found = await self._read(key)
        return None if found is None or await self._is_marker(found) else found

    async def _read(self, key: str) -> Value | None:
        """Like `get`, but returns an empty value for a marker."""
        with self._map_errors():
            try:
                found = await (await self._open()).get(key)
            except (nats.js.errors.KeyNotFoundError, nats.js.errors.InvalidKeyError):
                return None
            return Value(found.value or b"", found.revision or 0)

    async def _is_marker(self, found: Value) -> bool:
        """Returns whether nats-server has stored the message in place of an expired value.

        It does that in a stream with `subject_delete_marker_ttl`, which `check` refuses. nats-py returns no headers.
        """
        if found.data:
            return False
        with self._map_errors():
            message = await self._connection.jetstream.get_msg(f"KV_{self._name}", seq=found.revision)
            return "Nats-Marker-Reason" in (message.headers or {})

    async def put(self, key: str, data: bytes) -> int:
        """Stores `data`, also if `key` exists. Returns its revision. Raises LogUnavailable."""
        with self._map_errors():
            return await (await self._open()).put(key, data)

    async def update(self, key: str, data: bytes, revision: int) -> int | None:
        """Replaces the value that was read at `revision` (0: no value). Returns the new revision.

        Returns None if the value has changed since. Raises LogUnavailable, LogDenied.
        """
        try:
            with self._map_errors():
                try:
                    return await (await self._open()).update(key, data, last=revision)
                except nats.js.errors.KeyWrongLastSequenceError:
                    return None
        except LogUnavailable:
            self._connection.raise_if_denied(f"$KV.{self._name}.{key}")
            raise

    async def delete(self, key: str) -> None:
        """Deletes `key`, if it exists. Raises LogUnavailable."""
        with self._map_errors():
            await (await self._open()).delete(key)

    async def remove(self, key: str, revision: int) -> None:
        """Deletes the value that was stored at `revision`, if it has not changed since. Raises LogUnavailable.

        For keys of which there are many: a second later the bucket has no message of the key.
        """
        store = partial(
            self._connection.store, f"$KV.{self._name}.{key}", b"", timeout_s=REMOVE_TIMEOUT_S, fence=Seq(revision)
        )
        ack = await store(headers=REMOVED)
        if ack.error is not None and ack.error.err_code == pub_ack.NO_TTL:
            # An earlier version has created the bucket.
            await store(headers={KV_OP: KV_DEL})

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._connection.jetstream.key_value(self._name)
        return self._bucket

    @contextmanager
    def _map_errors(self) -> Iterator[None]:
        try:
            yield
        except nats.errors.Error as error:
            raise LogUnavailable(f"{self._content} cannot be read or stored ({type(error).__name__}): retry") from error
