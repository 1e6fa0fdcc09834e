"""Tickets: encrypted tokens in a URL that permit reading one turn's events without a key.

A shared ticket serves any number of readers. A single-use ticket is for an EventSource, which can send no header and
reconnects with the same URL. A log, a screen or a browser history may show that URL, but not the stream that it
started. So each SSE id of the stream carries a proof; the EventSource sends the last id when it reconnects, and
continues with it, while the ticket alone is not valid again (docs/adr/0016).
"""

import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from tailrace.features.tickets.older_gateways import OlderGateways
from tailrace.features.tickets.used_tickets import UsedTickets
from tailrace.gateway.auth.authenticate import CredentialSource, credential_invalid
from tailrace.gateway.auth.principal import KeyLookup, NoKey, Principal
from tailrace.gateway.auth.signed_tokens import Signed, TokenSigner
from tailrace.gateway.http.last_event_id import last_event_id
from tailrace.proto.errors import not_found
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.ownership import WHOLE, Scope, ScopedKey

PARAMETER = "ticket"
# The only route that reads the parameter, so a ticket opens no other one.
EVENTS = re.compile(r"/v1/turns/[^/]+/events")
# A page uses a ticket right after it gets it.
BEGIN_S = 60
# How long the stream of a single-use ticket may last; a turn has ended by then.
ONCE_S = 3600
SHARED_S_MIN, SHARED_S, SHARED_S_MAX = 60, 3600, 24 * 3600


class Ticket(Signed, frozen=True, kw_only=True, array_like=True):
    """Permission to read the events of one turn. Times are Unix seconds.

    `key` is the id of the credential that created the ticket; with `has_key` it is an API key, and the ticket ends with
    it. Without `key` no credential was needed, and the ticket ends when the first key is created. `once` is the id of
    a single-use ticket, and empty for a shared one.
    """

    prefix = b"trt_"

    tenant: Tenant
    turn: TurnId
    key: str | None
    has_key: bool
    begin_by: int
    until: int
    once: str = ""
    user: str | None = None
    """The user of the credential."""


class Tickets:
    """Creates and verifies tickets. All gateways accept each other's tickets."""

    def __init__(
        self, signer: TokenSigner, uses: UsedTickets, find_key: KeyLookup, older_gateways: OlderGateways
    ) -> None:
        self._signer = signer
        self._uses = uses
        self._find_key = find_key
        self._older_gateways = older_gateways
        self.source = CredentialSource(read_query, [self])

    async def create_single_use(self, principal: Principal, turn: TurnId) -> tuple[str, Ticket]:
        """Returns a ticket for one reader, who must start within BEGIN_S."""
        now = int(time.time())
        return await self._create(principal, turn, now + BEGIN_S, now + ONCE_S, secrets.token_hex(16))

    async def create_shared(self, principal: Principal, turn: TurnId, life_s: int) -> tuple[str, Ticket]:
        """Returns a ticket for any number of readers, valid for `life_s` seconds."""
        until = int(time.time()) + life_s
        return await self._create(principal, turn, until, until, "")

    async def _create(
        self, principal: Principal, turn: TurnId, begin_by: int, until: int, once: str
    ) -> tuple[str, Ticket]:
        key = self._find_key(principal.key) if principal.key is not None else NoKey.OTHER
        # The ticket ends with the credential that created it: the API key, also behind a login's shorter access token,
        # or else the credential itself, such as a JWT.
        ends = key.until if isinstance(key, Principal) else principal.until
        if ends is not None:
            until = min(until, int(ends))
        ticket = Ticket(
            tenant=principal.access.tenant,
            turn=turn,
            key=principal.key,
            # Also if the key has ended since the request was authenticated: then no ticket of it is valid.
            has_key=key is not NoKey.OTHER,
            begin_by=min(begin_by, until),
            until=until,
            once=once,
            user=principal.user,
        )
        # An older version reads only signed tickets, whose fields the holder of the link can read, too.
        make = self._signer.sign if await self._older_gateways.are_running() else self._signer.encrypt
        return make(ticket), ticket

    async def verify(self, token: bytes, request: Request) -> Principal | None:
        """Returns a principal that may read this ticket's turn; None if the ticket is not valid or has expired.

        A single-use ticket is marked as used when its stream starts, not here.
        """
        ticket = self._signer.read(token, Ticket)
        if ticket is None or time.time() > (ticket.until if self._has_proof(token, request) else ticket.begin_by):
            return None
        creator = self._find_key(ticket.key) if ticket.has_key and ticket.key is not None else NoKey.OTHER
        if ticket.has_key and (isinstance(creator, NoKey) or creator.access.tenant != ticket.tenant):
            return None
        return Principal(
            Scope(ticket.tenant, WHOLE),
            ticket.key,
            scopes=frozenset({"read"}),
            until=ticket.until,
            turn=ticket.turn,
            limits=creator.limits if isinstance(creator, Principal) else None,
            counted_as=creator.counted_as if isinstance(creator, Principal) else None,
            user=ticket.user,
            must_name_user=ticket.key is not None and not ticket.has_key,
        )

    async def read_single_use(self, request: Request, key: ScopedKey) -> Ticket | None:
        """Returns the single-use ticket of a request for the events of `key`; None for another ticket or none.

        Raises Refused if the ticket is not valid, or is for another turn. This repeats what the guard of the route
        checks where a credential is needed.
        """
        tokens = read_query(request)
        if not tokens:
            return None
        ticket = self._signer.read(tokens[0], Ticket) if len(tokens) == 1 else None
        if ticket is None or await self.verify(tokens[0], request) is None:
            raise credential_invalid()
        if TurnKey(ticket.tenant, ticket.turn) != key.plain:
            raise not_found("turn")
        if ticket.once and last_event_id(request) and not self._has_proof(tokens[0], request):
            raise credential_invalid()
        return ticket if ticket.once else None

    def stream_terms(self, ticket: Ticket, request: Request) -> tuple[bytes, Callable[[], Awaitable[None]] | None]:
        """Returns the proof before each SSE id, and a function to mark a single-use ticket as used before the 200."""
        token = read_query(request)[0]

        async def use() -> None:
            if not await self._uses.mark_used(ticket.once):
                raise credential_invalid()

        proof = f"{self._signer.proof(token.decode())}.".encode()
        return proof, None if self._has_proof(token, request) else use

    def _has_proof(self, token: bytes, request: Request) -> bool:
        proof, dot, _ = last_event_id(request).rpartition(".")
        actual, expected = proof.encode("latin-1", "replace"), self._signer.proof(token.decode("latin-1")).encode()
        return bool(dot) and hmac.compare_digest(actual, expected)


def read_query(request: Request) -> list[bytes]:
    """Returns the tickets in the query; none on routes that take no ticket."""
    if request.method != "GET" or EVENTS.fullmatch(request.scope["path"]) is None:
        return []
    return [token.encode() for token in request.query_params.getlist(PARAMETER)]
