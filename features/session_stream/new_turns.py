"""NewTurns: notifies the streams of a session that it may have a new turn. Uses one subscription for each tenant."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from tailrace.proto.ids import SessionId, Tenant
from tailrace.proto.nats import TurnLog


class NewTurns:
    """The live feed of requests, for each tenant with a session stream on this gateway."""

    def __init__(self, log: TurnLog) -> None:
        self._log = log
        self._tenants: dict[Tenant, _Listeners] = {}
        self._changing = asyncio.Lock()

    @asynccontextmanager
    async def listen(self, tenant: Tenant, session: SessionId) -> AsyncIterator[asyncio.Event]:
        """Yields an event that is set when the session may have a new turn. Raises LogUnavailable on entry."""
        news = asyncio.Event()
        async with self._changing:
            if tenant not in self._tenants:
                listeners = _Listeners()
                await listeners.subscription.enter_async_context(self._log.new_turns(tenant, listeners.notify))
                self._tenants[tenant] = listeners
            listeners = self._tenants[tenant]
            listeners.by_session[session].add(news)
        try:
            yield news
        finally:
            listeners.by_session[session].discard(news)
            if not listeners.by_session[session]:
                del listeners.by_session[session]
            async with self._changing:
                if not listeners.by_session and self._tenants.get(tenant) is listeners:
                    del self._tenants[tenant]
                    await listeners.subscription.aclose()


class _Listeners:
    """The session streams of one tenant, and their subscription."""

    def __init__(self) -> None:
        self.by_session: defaultdict[SessionId, set[asyncio.Event]] = defaultdict(set)
        self.subscription = AsyncExitStack()

    def notify(self, session: SessionId | None) -> None:
        """Sets the events of a session, or of all sessions if `session` is None."""
        sessions = tuple(self.by_session) if session is None else (session,)
        for one in sessions:
            for news in self.by_session.get(one, ()):
                news.set()
