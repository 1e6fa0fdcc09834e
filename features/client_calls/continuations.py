"""Starts the next turn once all calls are decided: at the last decision, or later if its gateway was killed."""

import asyncio
import random

import msgspec
import structlog

from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.clients.stored_messages import StoredMessages
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.draft import TurnDraft
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.proto import blobs, long_strings
from tailrace.proto.client_calls import Continuation, DecidedTurn, GetContinuation, ListDecided
from tailrace.proto.entries import Request
from tailrace.proto.errors import BlobUnknown, LogError, Refused
from tailrace.proto.ids import LOCAL, Tenant, TurnId
from tailrace.proto.usage import NANO_USD_PER_USD

logger = structlog.get_logger()

PATH = "/v1/sessions/{session}/calls/{call}"
# The interval of searches for decided turns that were not started: their gateway was killed, or a limit refused them.
FIND_S = 10.0
# A refused start is repeated after each search for this long, and then less and less often.
EAGER_S = 60.0
EXPIRED = "the system prompt or the tools of the turn have expired: continue with POST /v1/turns"


class Continuations:
    """Starts decided turns. Any number of gateways may start the same one: it is stored once.

    The key of its submission follows from the turn with the calls, and its body from the decisions, which never change.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._history = gateway.history
        self._submitter = gateway.submitter
        self._blobs = gateway.blob_store
        self._find_key = gateway.authenticator.find_key

    async def start(self, tenant: Tenant, session: str) -> TurnId:
        """Starts the next turn of a session of which all calls are decided; returns its id. Raises Refused, LogError.

        A turn that was started, but is not recorded yet, is returned.
        """
        found = await self._history.query(tenant, GetContinuation(session))
        raw = msgspec.json.encode(found.results)
        request = await self._resolve(tenant, found)
        draft = TurnDraft(
            # The decision was accepted: its key may have ended since.
            (self._find_key(found.by) if found.by else None) or Principal(tenant, found.by),
            raw,
            # No Idempotency-Key of a client contains a space.
            f"calls {found.turn}",
            added_bytes=len(msgspec.json.encode(request)),
            path=PATH,
            new_turn=_new_turn(found, request),
        )
        return (await self._submitter.submit(draft)).key.turn

    async def _resolve(self, tenant: Tenant, found: Continuation) -> Request:
        """Returns the request with the texts of its blobs. Raises Refused if they have expired, LogUnavailable."""
        request = found.request
        prompt = StoredMessages([], request.system, request.tools)
        try:
            texts = {
                blob.sha256: await long_strings.decode_text(await self._blobs.read(tenant, blob))
                for blob in set(blobs.references(prompt))
            }
        except BlobUnknown as error:
            raise Refused("blob_expired", EXPIRED) from error
        whole = blobs.resolve(prompt, texts) if texts else prompt
        return msgspec.structs.replace(request, system=whole.system, tools=whole.tools)

    async def run(self) -> None:
        """Starts decided turns that were not started, until it is cancelled."""
        while True:
            try:
                await self._start_all()
            except (Refused, LogError) as error:
                logger.debug("decided turns cannot be read", why=str(error))
            await asyncio.sleep(FIND_S * (0.5 + random.random()))  # noqa: S311  # spreads load, hides nothing

    async def _start_all(self) -> None:
        query = ListDecided()
        while page := (await self._history.query(LOCAL, query)).turns:
            query = ListDecided(page[-1].tenant, page[-1].session)
            # Each gateway in another order: otherwise all of them would start the same ones.
            for one in random.sample(page, len(page)):
                if random.random() * one.age_s < EAGER_S:  # noqa: S311
                    await self._start_found(one)

    async def _start_found(self, one: DecidedTurn) -> None:
        try:
            following = await self.start(one.tenant, one.session)
            logger.info("decided turn continued", turn=one.turn, next=following, tenant=one.tenant)
        except (Refused, LogError) as error:
            logger.debug("decided turn cannot be continued", turn=one.turn, tenant=one.tenant, why=str(error))


def _new_turn(found: Continuation, request: Request) -> NewTurn:
    """Returns the turn that a client would have posted with the results."""
    cost = request.max_cost_nano_usd
    return NewTurn(
        messages=[MessageParam("user", found.results)],
        session=request.session,
        parent=found.turn,
        model=request.model,
        max_tokens=request.max_tokens,
        system=request.system,
        tools=request.tools,
        options=request.options,
        betas=request.betas,
        api_version=request.api_version,
        project=request.project,
        user=request.user,
        metadata=request.metadata,
        cache=request.cache,
        on_interrupt=request.on_interrupt,
        on_pause=request.on_pause,
        webhook=request.webhook,
        max_cost=None if cost is None else cost / NANO_USD_PER_USD,
    )
