"""The request that an endpoint receives: authenticated, with its body and the turn in its path."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import cached_property
from typing import TypeVar

from starlette import types
from starlette.requests import Request

from tailrace.gateway.auth.authenticate import Authenticator, credential_invalid
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http import read_body
from tailrace.gateway.http.json_mistake import replace_halves
from tailrace.gateway.http.large_bodies import convert_body
from tailrace.gateway.http.read_body import BodyReader
from tailrace.proto.errors import Refused, not_found
from tailrace.proto.ids import Tenant, TurnId, is_token
from tailrace.proto.ownership import Scope, ScopedKey

B = TypeVar("B")


class ApiRequest(Request):
    """A request of an authenticated principal, or of any client on a public route."""

    def __init__(
        self, scope: types.Scope, receive: types.Receive, authenticator: Authenticator, bodies: BodyReader
    ) -> None:
        super().__init__(scope, receive)
        self._authenticator = authenticator
        self._bodies = bodies
        self.until_answered = AsyncExitStack()
        """Resources that are released when the endpoint has returned a response, such as the memory of a large body."""
        self.response_headers: list[Mapping[str, str]] = []
        """Headers for the response or the error response, read once, when the endpoint is done."""

    @cached_property
    def principal(self) -> Principal:
        """The guard of the route sets it. Raises Refused on a public route, where no credential was checked."""
        raise credential_invalid()

    @property
    def access(self) -> Scope:
        """The scope of the principal. Raises Refused on a public route."""
        return self.principal.access

    async def read(
        self, kind: type[B], *, is_text_allowed: bool = False, has_model_output: bool = False
    ) -> tuple[B, bytes]:
        """Returns the body as a `kind`, and its bytes. Raises Refused.

        `is_text_allowed`: JSON may come as `text/plain`, which `fetch` sends for a string. Other origins were rejected
        earlier. `has_model_output`: the body repeats what a model has written, so it may have halves of surrogate pairs
        (PROTOCOL R125).
        """
        types = read_body.JSON_OR_TEXT if is_text_allowed else read_body.ONLY_JSON
        raw = await self.read_bytes(types)
        regular = await convert_body(len(raw), replace_halves, raw) if has_model_output else raw
        return await self._bodies.decode(regular, kind), raw

    async def read_bytes(self, types: frozenset[str]) -> bytes:
        """Returns the body. Raises Refused for a media type not in `types`."""
        raw = await self._bodies.read(self, self.principal.access.tenant, self.until_answered, types)
        # A body may take minutes to arrive, and the credential may have ended meanwhile.
        self._authenticator.require_valid(self.principal)
        return raw

    def turn(self, parameter: str = "turn", prefix: str = "") -> ScopedKey:
        """Returns the turn that the path names, in the principal's scope. Raises Refused for a name that is no id.

        The tenant comes from the credential alone, so another tenant's turn cannot be addressed: it is not found. The
        name may begin with `prefix`.
        """
        turn = self.path_params[parameter].removeprefix(prefix)
        if not is_token(turn):
            raise not_found("turn")
        return ScopedKey(self.principal.access, TurnId(turn))


def parse_tenant(name: str) -> Tenant:
    """Returns the tenant that a path or a body names. Raises Refused if no tenant can have this name."""
    if not is_token(name):
        raise Refused("request_invalid", f"`tenant`: {name[:64]!r} is not 1 to 64 of a-z 0-9 _ -", param="tenant")
    return Tenant(name)
