"""Claims of idempotency keys: whoever creates the claim names the turn; everybody after that finds it."""

import asyncio
import hashlib

import msgspec
import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import CLAIMS

TRIES = 10
STALE_WAIT_S = 0.01


class Claim(msgspec.Struct, frozen=True):
    """The turn that a key stands for, and the SHA-256 of the request body that it stands for it with."""

    turn: TurnId
    body_sha256: str


_decoder = msgspec.json.Decoder(Claim)


class Claims:
    """Create-if-absent of hash(tenant, key), kept no longer than the log keeps its turn."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bucket: KeyValue | None = None

    async def claim(self, tenant: Tenant, key: str, mine: Claim) -> Claim:
        """The claim that stands for `key`: `mine` if nobody was before. Raises LogUnavailable.

        What a client sends becomes a hash before it becomes a name: it may be anything.
        """
        name = _name(tenant, key)
        for _ in range(TRIES):
            try:
                return await _first(await self._open(), name, mine)
            except nats.js.errors.KeyNotFoundError:
                # Somebody was first, and the server that was asked who is behind (PROTOCOL R14).
                await asyncio.sleep(STALE_WAIT_S)
            except nats.errors.Error as error:
                raise LogUnavailable(f"the idempotency key cannot be claimed: {type(error).__name__}") from error
        raise LogUnavailable("the idempotency key is claimed, and no server can say for which turn yet")

    async def find(self, tenant: Tenant, key: str) -> Claim | None:
        """The claim that stands for `key`, and none is made; None may be a moment old. Raises LogUnavailable."""
        try:
            found = await (await self._open()).get(_name(tenant, key))
        except nats.js.errors.KeyNotFoundError:
            return None
        except nats.errors.Error as error:
            raise LogUnavailable(f"the idempotency key cannot be looked up: {type(error).__name__}") from error
        return _decoder.decode(found.value or b"")

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._connection.jetstream.key_value(CLAIMS)
        return self._bucket


def _name(tenant: Tenant, key: str) -> str:
    return hashlib.sha256(f"{tenant}\0{key}".encode()).hexdigest()


async def _first(bucket: KeyValue, name: str, mine: Claim) -> Claim:
    try:
        await bucket.create(name, msgspec.json.encode(mine))
    except nats.js.errors.KeyWrongLastSequenceError:
        # Somebody was first, or it was this very call, whose acknowledgement was lost: the same answer.
        found = await bucket.get(name)
        return _decoder.decode(found.value or b"")
    return mine
