"""Chunks of blobs in the stream BODIES: publish and read one, with retries.

A chunk is far below the server's limit, and the next one waits for its acknowledgement: large bodies do not delay the
appends of turns on the same connection.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tailrace.proto.errors import LogFull, LogUnavailable
from tailrace.proto.ids import BEFORE_FIRST, Seq
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import BODIES

CHUNK_BYTES = 512 * 1024
TRY_TIMEOUT_S = 2.0
TRY_AGAIN_S = 0.05
# The longest observed lag of a follower. A deleted blob may have lost chunks by a purge, or by expiry before its mark.
BEHIND_MAX_S = 1.0
# Per chunk or mark: long enough for the election of a leader, short enough for a waiting client.
TIMEOUT_S = 10.0

FULL = "the storage for pictures, documents and long texts is full: wait until some expire, or raise BODIES' limit"

T = TypeVar("T")


async def publish(connection: Connection, subject: str, payload: bytes, fence: Seq | None = None) -> Seq:
    """Publishes until the message is stored: storing it twice is harmless. Returns 0 if the fence is refused.

    Raises LogFull, and LogUnavailable after TIMEOUT_S.
    """

    async def publish_once() -> Seq:
        stored = await connection.store(subject, payload, timeout_s=TRY_TIMEOUT_S, fence=fence)
        if stored.error is None:
            return stored.seq
        if stored.is_full:
            raise LogFull(FULL)
        if fence is not None and stored.is_fence_lost:
            return BEFORE_FIRST
        raise LogUnavailable(stored.error.description)

    return await retry(publish_once)


async def read(connection: Connection, subject: str) -> bytes:
    """Returns the last message on `subject` from any replica, which may be behind; b"" without one.

    Raises LogUnavailable after TIMEOUT_S.
    """

    async def read_once() -> bytes:
        reply = await connection.request(f"$JS.API.DIRECT.GET.{BODIES}.{subject}", b"", timeout_s=TRY_TIMEOUT_S)
        return b"" if "Status" in reply.headers else reply.data

    return await retry(read_once)


async def retry(work: Callable[[], Awaitable[T]]) -> T:
    """Repeats `work` until it does not raise LogUnavailable, for at most TIMEOUT_S."""
    why = ""
    deadline = asyncio.get_running_loop().time() + TIMEOUT_S
    while asyncio.get_running_loop().time() < deadline:
        try:
            return await work()
        except LogUnavailable as error:
            why = str(error)
        await asyncio.sleep(TRY_AGAIN_S)
    raise LogUnavailable(f"the storage for pictures and long texts does not answer: {why}")
