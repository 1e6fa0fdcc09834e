"""Starts the next turn once all calls are decided: at the last decision, or later if its gateway was killed."""

import asyncio
import random
from contextlib import AsyncExitStack

import msgspec
import structlog

from tailrace.features.client_calls.records import Block, Continuation, DecidedTurn, GetContinuation, ListDecided
from tailrace.features.common.follow_up import settings_of
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.services import Gateway
from tailrace.gateway.turns.draft import TurnDraft
from tailrace.gateway.turns.file_references import has_files
from tailrace.gateway.turns.request_body import MessageParam, NewTurn
from tailrace.proto.entries import Message
from tailrace.proto.errors import LogError, Refused
from tailrace.proto.ids import LOCAL, TurnId
from tailrace.proto.ownership import WHOLE, Scope

logger = structlog.get_logger()

PATH = "/v1/sessions/{session}/calls/{call}"
# The interval of searches for decided turns that were not started: their gateway was killed, or a limit refused them.
FIND_S = 10.0
# A refused start is repeated after each search for this long, and then less and less often.
EAGER_S = 60.0


class Continuations:
    """Starts decided turns. Any number of gateways may start the same one: it is stored once.

    The key of its submission follows from the turn with the calls, and its body from the decisions, which never change.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._history = gateway.history
        self._submitter = gateway.submitter
        self._blobs = gateway.blob_store
        self._stand_in = gateway.authenticator.stand_in

    async def require_files(self, scope: Scope, result: list[Block], body_bytes: int) -> None:
        """Raises Refused if a result refers to a file that the next turn could not read; LogUnavailable."""
        if has_files([result]):
            async with AsyncExitStack() as held:
                await self._submitter.steps.open_files(scope, body_bytes, held).insert([Message("user", result)])

    async def start(self, principal: Principal, session: str) -> TurnId:
        """Starts the next turn of a session of which all calls are decided; returns its id. Raises Refused, LogError.

        `principal` repeats or makes the last decision, and pays. A turn that was started, but is not recorded yet, is
        returned.
        """
        return await self._submit(principal, await self._history.query(principal.access, GetContinuation(session)))

    async def _submit(self, principal: Principal, found: Continuation) -> TurnId:
        raw = msgspec.json.encode(found.results)
        settings = await settings_of(self._blobs, principal.access.tenant, found.request)
        del settings["on_disconnect"]
        draft = TurnDraft(
            principal,
            raw,
            # No Idempotency-Key of a client contains a space.
            f"calls {found.turn}",
            added_bytes=len(msgspec.json.encode(settings)),
            path=PATH,
            # As a client would have posted it with the results.
            new_turn=NewTurn(messages=[MessageParam("user", found.results)], parent=found.turn, **settings),
        )
        return (await self._submitter.submit(draft)).key.turn

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
        while page := (await self._history.query(Scope(LOCAL, WHOLE), query)).turns:
            query = ListDecided(page[-1].tenant, page[-1].session)
            # Each gateway in another order: otherwise all of them would start the same ones.
            for one in random.sample(page, len(page)):
                if random.random() * one.age_s < EAGER_S:  # noqa: S311
                    await self._start_found(one)

    async def _start_found(self, one: DecidedTurn) -> None:
        try:
            scope = Scope(one.tenant, WHOLE)
            found = await self._history.query(scope, GetContinuation(one.session))
            following = await self._submit(self._stand_in(scope, found.by), found)
            logger.info("decided turn continued", turn=one.turn, next=following, tenant=one.tenant)
        except (Refused, LogError) as error:
            logger.debug("decided turn cannot be continued", turn=one.turn, tenant=one.tenant, why=str(error))
