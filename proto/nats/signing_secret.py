"""The secret that all gateways sign with: 256 random bits in the bucket SECRETS, made by whoever needs it first."""

import asyncio
import secrets

import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import SECRETS

NAME = "signing"
BYTES = 32
TRIES = 10
STALE_WAIT_S = 0.01


async def signing_secret(connection: Connection) -> bytes:
    """The same for everybody, from the first call on. It is printed nowhere. Raises LogUnavailable."""
    try:
        bucket = await connection.jetstream.key_value(SECRETS)
        for _ in range(TRIES):
            try:
                return await _first(bucket, secrets.token_bytes(BYTES))
            except nats.js.errors.KeyNotFoundError:
                # Somebody was first, and the server that was asked whose it is is behind (PROTOCOL R14).
                await asyncio.sleep(STALE_WAIT_S)
    except nats.errors.Error as error:
        raise LogUnavailable(f"the signing secret cannot be read: {type(error).__name__}") from error
    raise LogUnavailable("the signing secret was made by somebody else, and cannot be read yet")


async def _first(bucket: KeyValue, mine: bytes) -> bytes:
    try:
        await bucket.create(NAME, mine)
    except nats.js.errors.KeyWrongLastSequenceError:
        return (await bucket.get(NAME)).value or b""
    return mine
