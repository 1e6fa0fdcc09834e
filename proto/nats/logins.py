"""Logins: what stands behind a browser's refresh token, in the bucket LOGINS, for all gateways. It decides nothing."""

import msgspec
import nats.errors
import nats.js.errors
from nats.js.kv import KeyValue

from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats.connection import Connection
from tailrace.proto.subjects import LOGINS


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """`key` is the name of the API key that logged in; times are Unix seconds."""

    key: str
    until: int
    generation: int = 0
    """How often it was refreshed: the refresh token of this number is the one that is good."""
    refreshed_at: float


_decoder = msgspec.json.Decoder(Login)


class Logins:
    """Every method raises LogUnavailable. What is read was asked of the leader, and is written by its revision."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._bucket: KeyValue | None = None

    async def put(self, name: str, login: Login, revision: int = 0) -> bool:
        """Stores it in the place of what was read at `revision`, 0: of nothing. Whether nobody was faster."""
        try:
            await (await self._open()).update(name, msgspec.json.encode(login), last=revision)
        except nats.js.errors.KeyWrongLastSequenceError:
            return False
        except nats.errors.Error as error:
            raise _unavailable(error) from error
        return True

    async def get(self, name: str) -> tuple[Login, int] | None:
        """The login and its revision; None: there is none, or no longer."""
        try:
            found = await (await self._open()).get(name)
        except nats.js.errors.KeyNotFoundError:
            return None
        except nats.errors.Error as error:
            raise _unavailable(error) from error
        return _decoder.decode(found.value or b""), found.revision or 0

    async def delete(self, name: str) -> None:
        """None of its refresh tokens is good any more."""
        try:
            await (await self._open()).delete(name)
        except nats.errors.Error as error:
            raise _unavailable(error) from error

    async def _open(self) -> KeyValue:
        if self._bucket is None:
            self._bucket = await self._connection.jetstream.key_value(LOGINS)
        return self._bucket


def _unavailable(error: nats.errors.Error) -> LogUnavailable:
    return LogUnavailable(f"the login cannot be looked up: {type(error).__name__}")
