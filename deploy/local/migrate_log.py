"""The log of one nats-server is moved to three, or back: copied while nobody uses it, and what it was is put aside.

Neither sees what the other stored. Until a copy is whole it is not where a log is looked for, so that whoever is
stopped in the middle begins anew, and nothing is lost.

Servers of a cluster that have just started answer with less than they have: each cuts its store down to its last
snapshot and tells the rest of it again from what they agreed upon (Raft's log), once there is a leader; and who leads a
stream says so before it has. So they are read only when they are settled: nothing that was agreed upon is left to be
told, on any server. A copy is whole when each server has by itself what each of the others has; one that broke off may
look like that and never become it, so it is thrown away with its servers.
"""

import asyncio
import json
import os
import shutil
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from http.client import HTTPException
from itertools import chain
from pathlib import Path
from signal import SIGTERM
from typing import Any, NamedTuple

import msgspec

from tailrace.deploy.cli import streams
from tailrace.deploy.local import nats_cluster, nats_server
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_server import SHARED, NatsServer, Site
from tailrace.deploy.local.options import Options
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection, stream_copy
from tailrace.proto.nats.permissions import LOG

STAGE = "moving"
ONE_FIRST = "start `up` once without --cluster, which copies the log, and then with it"
ASIDE = ".before"
# Of a log of gigabytes.
MOVE_S_MAX = 1800.0
TRIES_MAX = 5
LOOK_EVERY_S = 0.1
# So often a person who waits is told for what.
TELL_EVERY_S = 5.0
# A leader is chosen within 9 s, and then something changes with every message.
STILL_S_MAX = 30.0
ANSWER_S_MAX = 5.0


class Held(NamedTuple):
    """What one server has of a stream. What is empty has no first sequence."""

    messages: int
    first: int
    last: int
    consumers: int


class Group(NamedTuple):
    """How far one server is in what is agreed upon about one stream or consumer: indices of Raft's log."""

    leader: str
    last: int
    committed: int
    applied: int

    @property
    def is_settled(self) -> bool:
        return self.leader != "" and self.last == self.committed == self.applied


class Seen(NamedTuple):
    """One server by itself, whoever leads; of one that is alone there are no groups."""

    streams: Mapping[str, Held]
    groups: Mapping[str, Group] | None


def sites_of(options: Options, folder: Path) -> list[Site]:
    """Where the servers of a log in `folder` live that is as `options` want it."""
    if options.cluster:
        room = nats_server.room_bytes(store_of(options, folder), nats_cluster.NODES)
        return nats_cluster.choose(folder, sync=options.sync, file_bytes_max=room)
    room = nats_server.room_bytes(store_of(options, folder))
    return [nats_server.choose(folder, sync=options.sync, file_bytes_max=room)]


def store_of(options: Options, folder: Path) -> Path:
    return folder / (nats_cluster.FOLDER if options.cluster else nats_server.STORE)


def found(options: Options, folder: Path) -> list[Site]:
    """The same for a log that is there, maybe from before there were accounts. Raises UpRefused."""
    sites = sites_of(options, folder)
    # Of all of them, or of none: what a server has lost the others give it.
    before = [is_shared(site.store) for site in sites]
    return [msgspec.structs.replace(site, is_shared=any(before)) for site in sites]


def is_shared(store: Path) -> bool:
    """Whether all that a server has stored is in the one account that had no name.

    Raises UpRefused where something is in the log's own, too: somebody has gone back to a version before, which found
    no log and began one. Only he knows which of them is to go on.
    """
    before, after = (nats_server.stored(store, account) for account in (SHARED, LOG))
    if before.exists() and after.exists():
        raise UpRefused(
            f"there are two logs: {before}, of an older version, and {after}, of this one. "
            "Move the one away that is not to go on"
        )
    return before.exists()


async def move(options: Options, screen: Console) -> None:
    """Returns when the log is as `options` want it, if there is one. Raises UpRefused, LogUnavailable."""
    _name(options.folder, screen)
    other = _other(options)
    old, new = store_of(other, options.folder), store_of(options, options.folder)
    # Where nothing is, to choose a place would make it.
    if options.cluster and new.exists() and any(site.is_shared for site in found(options, options.folder)):
        raise UpRefused(f"{new} is of a version before: {ONE_FIRST}")
    if not old.exists():
        return
    if not new.exists():
        screen.say(f"the log is moved to {'three servers' if options.cluster else 'one server'}")
        stage = options.folder / STAGE
        try:
            async with asyncio.timeout(MOVE_S_MAX):
                await copy(found(other, options.folder), options, stage, screen)
        except TimeoutError as error:
            raise UpRefused(f"the log could not be moved in {MOVE_S_MAX:g} s, and is where it was") from error
        # A copy is no append: nobody has waited for the disk.
        os.sync()
        store_of(options, stage).rename(new)
        shutil.rmtree(stage)
    # Where both were, the copy was whole, and nobody has used it yet.
    aside = old.with_name(old.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    screen.say(f"what it was is kept in {aside}, and may be removed")


def _name(folder: Path, screen: Console) -> None:
    """What one server has stored of the account without a name gets the log's: a rename is all that there is to it.

    Of three, each one's agreements name the account as well, so that they have to be copied.
    """
    store = folder / nats_server.STORE
    if is_shared(store):
        nats_server.stored(store, SHARED).rename(nats_server.stored(store, LOG))
        screen.say("the log has an account of its own in NATS now")


def _other(options: Options) -> Options:
    return Options(folder=options.folder, cluster=not options.cluster, sync=options.sync)


async def copy(old: Sequence[Site], options: Options, stage: Path, screen: Console) -> None:
    """Returns when there is a whole copy below `stage`, and no server runs. Raises UpRefused, LogUnavailable."""
    async with AsyncExitStack() as stack:
        source, servers = await _started(old, stack)
        await _settled(screen, old, still_s_max=MOVE_S_MAX)
        for left in reversed(range(TRIES_MAX)):
            try:
                await _copy_once(old, source, _fresh(options, stage), screen)
                break
            except LogUnavailable as error:
                if not left:
                    raise UpRefused(f"the log could not be moved, and is where it was: {error}") from error
                screen.say(f"the log is copied anew: {error}")
        await _stop(servers, source)


def _fresh(options: Options, stage: Path) -> list[Site]:
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    return sites_of(options, stage)


async def _copy_once(old: Sequence[Site], source: Connection, new: Sequence[Site], screen: Console) -> None:
    """Raises LogUnavailable where that broke off."""
    async with AsyncExitStack() as stack:
        target, servers = await _started(new, stack)
        await _settled(screen, new)
        bytes_max = streams.log_bytes_max(new[0].file_bytes_max)
        await stream_copy.copy_streams(source, target, replicas=len(new), bytes_max=bytes_max)
        # What has become too old meanwhile leaves both.
        await _settled(screen, old, new)
        await _stop(servers, target)


async def _started(sites: Sequence[Site], stack: AsyncExitStack) -> tuple[Connection, list[NatsServer]]:
    servers = []
    for site in sites:
        site.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        servers.append(await stack.enter_async_context(NatsServer(site.folder, site=site)))
    connection = await Connection.open(",".join(server.url for server in servers), "tailrace-moving")
    stack.push_async_callback(connection.close)
    return connection, servers


async def _stop(servers: Sequence[NatsServer], connection: Connection) -> None:
    """Each writes down how far it is: what it has to tell again at its next start is then nothing."""
    await connection.close()
    with suppress(TimeoutError):
        await asyncio.gather(*(server.stop(SIGTERM) for server in servers))


async def _settled(screen: Console, *ends: Sequence[Site], still_s_max: float = STILL_S_MAX) -> None:
    """Returns when the servers of each end are settled, and all have the same.

    Raises LogUnavailable when nothing has changed for `still_s_max`.
    """
    named = " and ".join(f"{len(sites)} in {sites[0].folder.parent}" for sites in ends)
    last: list[list[Seen]] = []
    changed = told = time.monotonic()
    while True:
        seen: list[list[Seen]] = []
        with suppress(OSError, HTTPException):  # one does not answer, or not yet
            seen = [[await asyncio.to_thread(_see, site) for site in sites] for sites in ends]
        if seen and all(map(are_settled, seen)) and are_alike(list(chain(*seen))):
            return
        now = time.monotonic()
        if seen != last:
            last, changed = seen, now
        if now - changed >= still_s_max:
            raise LogUnavailable(f"the servers do not come to have the same: {named}")
        if now - told >= TELL_EVERY_S:
            screen.say(f"the log waits until the servers have the same: {named}")
            told = now
        await asyncio.sleep(LOOK_EVERY_S)


def are_settled(servers: Sequence[Seen]) -> bool:
    """Whether each server has applied all that any of them has agreed upon, and they have the same."""
    groups = [seen.groups for seen in servers if seen.groups is not None]
    for seen in servers:
        # The one that is no stream's has made all of them.
        wanted = 1 + sum(1 + held.consumers for held in seen.streams.values())
        if seen.groups is not None and len(seen.groups) != wanted:
            return False
    are_told = all(group.is_settled for one in groups for group in one.values())
    return are_told and all(one == groups[0] for one in groups) and are_alike(servers)


def are_alike(servers: Sequence[Seen]) -> bool:
    return all(seen.streams == servers[0].streams for seen in servers)


def _see(site: Site) -> Seen:
    # Asked for first: what is applied after that, the streams have too.
    asked = ("/raftz", f"/raftz?acc={site.account}")
    groups = {k: v for path in asked for k, v in groups_of(_told(site, path)).items()} if site.membership else None
    return Seen(held_of(_told(site, "/jsz?accounts=true&streams=true")), groups)


def held_of(told: dict[str, Any]) -> dict[str, Held]:
    """Of a server's `/jsz` with all streams of all accounts."""
    found = {}
    for account in told.get("account_details") or []:
        for stream in account.get("stream_detail") or []:
            state = stream["state"]
            first = state["first_seq"] if state["messages"] else 0
            found[stream["name"]] = Held(state["messages"], first, state["last_seq"], state["consumer_count"])
    return found


def groups_of(told: dict[str, Any]) -> dict[str, Group]:
    """Of a server's `/raftz` with the groups of one account."""
    return {
        name: Group(group.get("leader", ""), group["pindex"], group["committed"], group["applied"])
        for groups in told.values()
        for name, group in groups.items()
    }


def _told(site: Site, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://127.0.0.1:{site.monitor_port}{path}", timeout=ANSWER_S_MAX) as answer:
        told: dict[str, Any] = json.load(answer)
        return told
