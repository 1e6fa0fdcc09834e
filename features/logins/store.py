"""Browser logins behind refresh tokens, in the bucket LOGINS, shared by all gateways."""

import msgspec

from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.subjects import LOGINS


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """A browser's login. `key` is the name of the API key that logged in; times are Unix seconds."""

    key: str
    until: int
    generation: int = 0
    """How often the login was refreshed; the number of its newest refresh token."""
    refreshed_at: float


_decoder = msgspec.json.Decoder(Login)


class LoginStore:
    """All logins. Reads go to the bucket's leader; writes expect the revision that was read. Raises LogUnavailable."""

    def __init__(self, connection: Connection) -> None:
        self._bucket = Bucket(connection, LOGINS, "the login")

    async def put(self, name: str, login: Login, revision: int = 0) -> bool:
        """Replaces the login that was read at `revision` (0: none). Returns False if it has changed since.

        Raises LogUnavailable.
        """
        return await self._bucket.update(name, msgspec.json.encode(login), revision) is not None

    async def get(self, name: str) -> tuple[Login, int] | None:
        """Returns the login and its revision, or None if it does not exist or was deleted. Raises LogUnavailable."""
        found = await self._bucket.get(name)
        return (_decoder.decode(found.data), found.revision) if found is not None else None

    async def delete(self, name: str) -> None:
        """Deletes the login: none of its refresh tokens is valid any more. Raises LogUnavailable."""
        await self._bucket.delete(name)
