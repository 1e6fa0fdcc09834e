"""Tickets: links that let their holder read one turn, without a key. What a ticket is good for is decided here.

One that many may use is a link to share. One that is used once is for an EventSource, which can send no key and comes
back with the same URL: whoever has seen that URL (a log, a screen, a history) has the ticket, too. What he has not seen
is the stream that it began. So its ids carry a proof, an EventSource sends the last id back, and that goes on, while
the ticket alone is worth nothing any more (docs/adr/0016-single-use-tickets-for-eventsource.md).
"""

import hmac
import re
import secrets
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tailrace.gateway.auth.authenticate import CredentialSource, unknown
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.auth.signed_tokens import Signature, Ticket
from tailrace.proto.ids import TurnId
from tailrace.proto.nats.used_tickets import UsedTickets
from tailrace.proto.subjects import TurnKey

PARAMETER = "ticket"
# Nothing else looks at the parameter, so that a ticket is worth nothing anywhere else.
EVENTS = re.compile(r"/v1/turns/[^/]+/events")
# A page asks for one and uses it.
BEGIN_S = 60
# How long its stream may go on; a turn is over by then.
ONCE_S = 3600
SHARED_S_MIN, SHARED_S, SHARED_S_MAX = 60, 3600, 24 * 3600

Named = Callable[[str], Principal | None]
"""Who an API key of that name speaks for; None when there is none, or no longer."""


class Tickets:
    """Makes tickets and verifies them. Any gateway knows those of any other."""

    def __init__(self, signature: Signature, uses: UsedTickets, named: Named) -> None:
        self._signature = signature
        self._uses = uses
        self._named = named
        self.carrier = CredentialSource(of_query, [self])

    def once(self, caller: Principal, turn: TurnId) -> tuple[str, Ticket]:
        """For one reader, who begins within BEGIN_S."""
        now = int(time.time())
        return self._signed(caller, turn, now + BEGIN_S, now + ONCE_S, secrets.token_hex(16))

    def shared(self, caller: Principal, turn: TurnId, life_s: int) -> tuple[str, Ticket]:
        """For any number of readers."""
        until = int(time.time()) + life_s
        return self._signed(caller, turn, until, until, "")

    def _signed(self, caller: Principal, turn: TurnId, begin_by: int, until: int, once: str) -> tuple[str, Ticket]:
        key = self._named(caller.key) if caller.key is not None else None
        has_key = key is not None
        # It ends with what it was made by. A login's key stays when its token has ended; a JWT has none behind it.
        ends = key.until if key is not None else caller.until
        if ends is not None:
            until = min(until, int(ends))
        ticket = Ticket(
            tenant=caller.tenant,
            turn=turn,
            key=caller.key,
            has_key=has_key,
            begin_by=min(begin_by, until),
            until=until,
            once=once,
        )
        return self._signature.sign(ticket), ticket

    async def verify(self, token: bytes, request: Request) -> Principal | None:
        """The one who made the ticket, for that turn's events alone; None when it is good no longer, or not for this.

        Whether a one-use ticket was used is found out when its stream begins: until then it is not used up.
        """
        ticket = self._signature.read(token, Ticket)
        if ticket is None or time.time() > (ticket.until if self._is_proved(token, request) else ticket.begin_by):
            return None
        maker = self._named(ticket.key) if ticket.has_key and ticket.key is not None else None
        if ticket.has_key and (maker is None or maker.tenant != ticket.tenant):
            return None
        return Principal(
            ticket.tenant,
            ticket.key,
            scopes=frozenset({"read"}),
            until=ticket.until,
            turn=ticket.turn,
            limits=maker.limits if maker is not None else None,
        )

    async def ticket_of(self, request: Request, key: TurnKey) -> Ticket | None:
        """The ticket that `request` for the events of `key` came with; None: it came with none.

        Raises Refused for one that is no good, which nobody has looked at where no credential is asked for.
        """
        tokens = of_query(request)
        if not tokens:
            return None
        ticket = self._signature.read(tokens[0], Ticket) if len(tokens) == 1 else None
        if (
            ticket is None
            or TurnKey(ticket.tenant, ticket.turn) != key
            or await self.verify(tokens[0], request) is None
        ):
            raise unknown()
        if ticket.once and request.headers.get("last-event-id") and not self._is_proved(tokens[0], request):
            raise unknown()
        return ticket

    def begun(self, ticket: Ticket, stream: ASGIApp, request: Request, *, has_ids: bool) -> ASGIApp:
        """`stream` as the ticket gives it: with its proof in each id, and with the ticket used up by its beginning."""
        if not ticket.once:
            return Ticketed(stream)
        token = of_query(request)[0]

        async def use() -> None:
            if not await self._uses.mark_used(ticket.once):
                raise unknown()

        proof = self._signature.proof(token.decode()) if has_ids else ""
        return Ticketed(stream, proof=proof, use=None if self._is_proved(token, request) else use)

    def _is_proved(self, token: bytes, request: Request) -> bool:
        proof, dot, _ = request.headers.get("last-event-id", "").rpartition(".")
        theirs, ours = proof.encode("latin-1", "replace"), self._signature.proof(token.decode("latin-1")).encode()
        return bool(dot) and hmac.compare_digest(theirs, ours)


class Ticketed:
    """A stream for who has a ticket. It knows nothing of what is told."""

    def __init__(self, stream: ASGIApp, *, proof: str = "", use: Callable[[], Awaitable[None]] | None = None) -> None:
        """`use` is called before the first byte of the answer, and may refuse it."""
        self._stream = stream
        self._proof = proof
        self._use = use

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                if self._use is not None and message["status"] == 200:
                    await self._use()
            elif self._proof:
                message = {**message, "body": with_proof(message.get("body", b""), self._proof)}
            await send(message)

        await self._stream(scope, receive, tell)


def with_proof(events: bytes, proof: str) -> bytes:
    """Whole `events`, each `id: 17` as `id: PROOF.17`. Data is one line, so that nothing else begins a line so."""
    return events.replace(b"\nid: ", b"\nid: %s." % proof.encode())


def cursor_text(last_event_id: str, ticket: Ticket | None) -> str:
    """The cursor in what an EventSource sent back; ticket_of has seen to its proof."""
    return last_event_id.rpartition(".")[2] if ticket is not None and ticket.once else last_event_id


def of_query(request: Request) -> list[bytes]:
    """The tickets that `request` came with, where one may be used."""
    if request.method != "GET" or EVENTS.fullmatch(request.scope["path"]) is None:
        return []
    return [token.encode() for token in request.query_params.getlist(PARAMETER)]
