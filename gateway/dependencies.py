"""The services of a gateway, and the request that an endpoint receives: authenticated, with what its response needs."""

import asyncio
from contextlib import AsyncExitStack
from typing import NamedTuple, TypeVar

import msgspec
from starlette.requests import Request
from starlette.types import Receive, Scope

from tailrace.gateway.auth.authenticate import Authenticator, credential_invalid
from tailrace.gateway.auth.login import Logins
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.tickets import Tickets
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http import read_body
from tailrace.gateway.http.log_fullness import LogFullness
from tailrace.gateway.http.log_health import LogHealth
from tailrace.gateway.limits.limiter import Limiter
from tailrace.gateway.limits.stream_slots import StreamPermit, StreamSlots
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.prompts.templates import Prompts
from tailrace.gateway.resources.batch_body import BatchBuilder
from tailrace.gateway.settings import Settings
from tailrace.gateway.streaming.fanout import FanOut
from tailrace.gateway.turns.delete import Deleter
from tailrace.gateway.turns.on_disconnect import DisconnectPolicy
from tailrace.gateway.turns.submission import HeaderSource
from tailrace.gateway.turns.submit import TurnSubmitter, draining_error
from tailrace.proto.errors import not_found
from tailrace.proto.ids import Tenant, TurnId, is_token
from tailrace.proto.nats import BlobPins, BlobStore, Claims, Connection, Rpc, TurnLog
from tailrace.proto.runtime.json_schema import SchemaChecker
from tailrace.proto.subjects import TurnKey

B = TypeVar("B", bound=msgspec.Struct)


class Gateway(NamedTuple):
    """Made once at startup."""

    settings: Settings
    connection: Connection
    authenticator: Authenticator
    tickets: Tickets
    logins: Logins
    log: TurnLog
    blobs: BlobStore
    blob_pins: BlobPins
    claims: Claims
    rpc: Rpc
    history: HistoryClient
    catalogue: Catalogue
    fan_out: FanOut
    disconnects: DisconnectPolicy
    log_fullness: LogFullness
    log_health: LogHealth
    limiter: Limiter
    stream_slots: StreamSlots
    schema_checker: SchemaChecker
    prompts: Prompts
    bodies: read_body.BodyReader
    draining: asyncio.Event
    deleter: Deleter
    submitter: TurnSubmitter
    batch_builder: BatchBuilder


class ApiRequest(Request):
    """A request of an authenticated principal, or of anybody on a public route."""

    def __init__(self, scope: Scope, receive: Receive, principal: Principal | None) -> None:
        super().__init__(scope, receive)
        self.gateway: Gateway = self.app.state.gateway
        self._principal = principal
        self.until_answered = AsyncExitStack()
        """What is released when the endpoint has returned a response: the memory of a large body, for example."""
        self.response_headers: list[HeaderSource] = []
        """Headers of the response, or of the error in its place. Each is called once, when the endpoint is done."""
        self._stream_permit: StreamPermit | None = None

    @property
    def principal(self) -> Principal:
        """Raises Refused on a public route, where no credential was checked."""
        if self._principal is None:
            raise credential_invalid()
        return self._principal

    @property
    def tenant(self) -> Tenant:
        return self.principal.tenant

    def stream_permit(self) -> StreamPermit:
        """The one permit of this request's stream, which may have been reserved already."""
        if self._stream_permit is None:
            address = self.client.host if self.client is not None else ""
            self._stream_permit = self.gateway.stream_slots.permit(self.principal, address)
        return self._stream_permit

    async def read(self, kind: type[B], *, is_text_allowed: bool = False) -> tuple[B, bytes]:
        """Returns the body as a `kind`, and its bytes. Raises Refused.

        `is_text_allowed`: JSON may come as `text/plain`, which `fetch` sends for a string. Pages of other origins were
        rejected before.
        """
        types = read_body.JSON_OR_TEXT if is_text_allowed else read_body.ONLY_JSON
        raw = await self.gateway.bodies.read(self, self.tenant, self.until_answered, types)
        return read_body.decode(raw, kind), raw


def gateway_of(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


def principal_of(request: Request) -> Principal:
    """The authenticated principal. Raises Refused on a public route."""
    return api_request(request).principal


def api_request(request: Request) -> ApiRequest:
    """`request` as its endpoint received it from the guard."""
    assert isinstance(request, ApiRequest)  # noqa: S101
    return request


def tenant_of(request: Request) -> Tenant:
    """The tenant of the principal. Raises Refused on a public route."""
    return principal_of(request).tenant


async def offer_to(request: Request) -> Offer:
    """The models that the principal may use. Raises Refused on a public route."""
    return await gateway_of(request).catalogue.offer(tenant_of(request))


def turn_of(request: Request) -> TurnKey:
    """The turn that the path names, of the principal's tenant. Raises Refused."""
    return turn_in_path(request, "turn")


def turn_in_path(request: Request, parameter: str) -> TurnKey:
    """As `turn_of`, for a path parameter of another name.

    The tenant comes from the credential alone, so another tenant's turn cannot be addressed: it is not found.
    """
    tenant = tenant_of(request)
    turn = request.path_params[parameter]
    if not is_token(turn):
        raise not_found("turn")
    return TurnKey(tenant, TurnId(turn))


def refuse_when_draining(gateway: Gateway) -> None:
    """Raises Refused while this gateway drains. To be called before anything is accepted, never after it."""
    if gateway.draining.is_set():
        raise draining_error()
