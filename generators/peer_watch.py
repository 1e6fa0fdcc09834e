"""Watches other generators, and releases the leases of one that is dead (PROTOCOL R151, ADR 44)."""

import asyncio
from contextlib import suppress

import structlog

from tailrace.generators import metrics
from tailrace.generators.peers import Holdings, Peer, Peers
from tailrace.generators.worker import Worker
from tailrace.proto.entries import Attempt
from tailrace.proto.errors import LogDenied, LogError, LogUnavailable, PeerAbsent
from tailrace.proto.ids import BEFORE_FIRST, Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.peers import Held, Holding, Notice, PeerLink
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.runtime.gather import gather_limited
from tailrace.proto.runtime.race import is_set_within

logger = structlog.get_logger()

ASK_EVERY_S = 0.15
# Between the questions to a peer that is absent.
ASK_AGAIN_S = 0.1
ANSWER_S_MAX = 1.0
SERVER_S_MAX = 0.3
# After a restart of nats-server, some processes connect later than others.
SETTLED_S = 2.0
# A generator announces itself at the start and at each reconnect, and again because messages may be lost: first after
# half a second, and then after twice the time of before.
ANNOUNCE_AFTER_S = 0.5
ANNOUNCE_AFTER_S_MAX = 8.0
READ_AT_ONCE = 16


class PeerWatch:
    """Watches two of the other generators, and is watched by two."""

    def __init__(self, link: PeerLink, name: str, log: TurnLog, worker: Worker) -> None:
        self._link = link
        self._name = name
        self._log = log
        self._worker = worker
        self._holdings = Holdings()
        self._peers = Peers(name)
        self._group = asyncio.TaskGroup()

    async def run(self) -> None:
        """Watches until it is cancelled. Raises LogUnavailable at the start."""
        await self._link.serve(self._answer, self._receive)
        async with self._group:
            self._group.create_task(self._announce())
            while True:
                for peer in self._peers.watched():
                    if peer.absent_since is None:
                        self._group.create_task(self._check(peer))
                await asyncio.sleep(ASK_EVERY_S)

    async def leave(self) -> None:
        """Tells the others that this process ends, and holds nothing."""
        with suppress(LogUnavailable):
            await self._link.notify(Notice("left", self._name))

    async def _announce(self) -> None:
        wait_s, reconnected = ANNOUNCE_AFTER_S, asyncio.Event()
        self._link.on_reconnected(reconnected.set)
        while True:
            try:
                await self._link.notify(Notice("here", self._name))
            except LogDenied as error:
                logger.warning("generators do not watch one another: leases of a dead one expire", why=str(error))
                return
            except LogUnavailable as error:
                logger.debug("not announced", why=str(error))
            if await is_set_within(reconnected, wait_s):
                reconnected.clear()
                wait_s = ANNOUNCE_AFTER_S
            else:
                wait_s = min(2 * wait_s, ANNOUNCE_AFTER_S_MAX)

    def _answer(self, known: int) -> Holding:
        return self._holdings.answer(known, self._worker.deliveries(), self._link.server)

    def _receive(self, notice: Notice) -> None:
        match notice.kind:
            case "here":
                self._peers.add(notice.name)
            case "left":
                self._peers.drop(notice.name)
            case "gone" if notice.name == self._name:
                metrics.PEERS_GONE.labels("alive").inc()
                logger.error("another generator takes this one for dead", by=notice.by)
            case "gone":
                # All receive the notices of two watchers, and the first one counts.
                peer = self._peers.drop(notice.name)
                if peer is not None and notice.by == self._name:
                    self._group.create_task(self._release_leases(peer))

    async def _check(self, peer: Peer) -> None:
        """Asks a peer, and again while it is absent, until that is decided.

        Another question may be open: a peer that was killed has received it, and does not answer it.
        """
        try:
            while True:
                if await self._is_decided(peer):
                    return
                await asyncio.sleep(ASK_AGAIN_S)
        except Exception:
            # A bug here must not end the other checks.
            logger.exception("generator not checked", generator=peer.name)

    async def _is_decided(self, peer: Peer) -> bool:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        try:
            peer.note_answer(await self._link.ask(peer.name, peer.version, timeout_s=ANSWER_S_MAX), asked_at)
        except PeerAbsent:
            match peer.note_absence(asked_at, loop.time(), is_settled=self._link.is_settled(SETTLED_S)):
                case "unsure":
                    return False
                case "gone" if peer.server and await self._link.is_reached(peer.server, timeout_s=SERVER_S_MAX):
                    # `_receive` drops the peer. If the notice is lost, the peer is asked again.
                    peer.absent_since = None
                    with suppress(LogUnavailable):
                        await self._link.notify(Notice("gone", peer.name, self._name))
                case _:
                    self._leave_to_leases(peer)
        except LogUnavailable:
            # It is frozen, or this process is disconnected.
            peer.absent_since = None
        return True

    def _leave_to_leases(self, peer: Peer) -> None:
        if self._peers.drop(peer.name) is not None and peer.answered_at is not None:
            metrics.PEERS_GONE.labels("unsure").inc()
            logger.info("generator absent: its leases decide", generator=peer.name, held=len(peer.held))

    async def _release_leases(self, peer: Peer) -> None:
        metrics.PEERS_GONE.labels("dead").inc()
        released = await gather_limited(lambda held: self._release(peer, held), peer.held, READ_AT_ONCE)
        logger.warning(
            "generator is gone: its leases are released",
            generator=peer.name,
            held=len(peer.held),
            released=sum(released),
        )

    async def _release(self, peer: Peer, held: Held) -> bool:
        """Releases a lease, unless another generator has the turn by now; returns whether it did."""
        try:
            if not await self._is_of(peer, TurnKey(Tenant(held.tenant), TurnId(held.turn))):
                return False
            await self._link.release(held)
        except LogError as error:
            logger.info("lease of a dead generator not released", turn=held.turn, why=str(error))
            return False
        metrics.LEASES_RELEASED.inc()
        return True

    async def _is_of(self, peer: Peer, key: TurnKey) -> bool:
        """Returns whether no other generator has made an attempt at the turn. Raises LogError.

        The turn may have ended: the next generator then only acknowledges it.
        """
        attempt = await self._log.last_seq(key, "attempt")
        if attempt == BEFORE_FIRST:
            return True
        found = await self._log.read_entries(ScopedKey.whole(key), Seq(attempt - 1), 1)
        return any(isinstance(one.entry, Attempt) and one.entry.generator == peer.name for one in found)
