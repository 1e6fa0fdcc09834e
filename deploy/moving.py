"""The log of one nats-server is moved to three, or back: copied while nobody uses it, and what it was is put aside.

Neither sees what the other stored. Until a copy is whole it is not where a log is looked for, so that whoever is
stopped in the middle begins anew, and nothing is lost.

Servers of a cluster that have just started answer with less than they have: each cuts its store down to its last
snapshot and tells the rest of it again from what they agreed upon (Raft's log), once there is a leader; and who leads a
stream says so before it has. So both ends are read only when they are settled: nothing that was agreed upon is left to
be told, on any server. And a copy is whole when each server has by itself what each of the others has.
"""

import asyncio
import json
import os
import shutil
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from signal import SIGTERM
from typing import Any, NamedTuple

from deploy import nats_cluster, nats_server, streams
from deploy.nats_server import NatsServer, Site
from deploy.options import Options
from deploy.refusal import UpRefused
from deploy.screen import Screen
from proto.errors import LogUnavailable
from proto.log import Connection, copying

STAGE = "moving"
ASIDE = ".before"
# Of a log of gigabytes.
MOVE_S_MAX = 1800.0
LOOK_EVERY_S = 0.1
# So often a person who waits is told for what.
TELL_EVERY_S = 5.0
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


async def move(options: Options, screen: Screen) -> None:
    """Returns when the log is as `options` want it, if there is one. Raises UpRefused, LogUnavailable."""
    other = _other(options)
    old, new = store_of(other, options.folder), store_of(options, options.folder)
    if not old.exists():
        return
    if not new.exists():
        screen.say(f"the log is moved to {'three servers' if options.cluster else 'one server'}")
        stage = options.folder / STAGE
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700)
        sites = sites_of(options, stage)
        await _copy(sites_of(other, options.folder), sites, screen)
        # A copy is no append: nobody has waited for the disk.
        os.sync()
        store_of(options, stage).rename(new)
        shutil.rmtree(stage)
    # Where both were, the copy was whole, and nobody has used it yet.
    aside = old.with_name(old.name + ASIDE)
    shutil.rmtree(aside, ignore_errors=True)
    old.rename(aside)
    screen.say(f"what it was is kept in {aside}, and may be removed")


def _other(options: Options) -> Options:
    return Options(folder=options.folder, cluster=not options.cluster, sync=options.sync)


async def _copy(old: Sequence[Site], new: Sequence[Site], screen: Screen) -> None:
    async with AsyncExitStack() as stack:
        servers, connections = [], []
        for sites in (old, new):
            started = []
            for site in sites:
                site.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                started.append(await stack.enter_async_context(NatsServer(site.folder, site=site)))
            connection = await Connection.open(",".join(server.url for server in started), "tailrace-moving")
            stack.push_async_callback(connection.close)
            servers += started
            connections.append(connection)
        source, target = connections
        bytes_max = streams.log_bytes_max(new[0].file_bytes_max)
        why, told = "", time.monotonic()
        try:
            async with asyncio.timeout(MOVE_S_MAX):
                while why := await _why_not(old, new, source, target, bytes_max):
                    if time.monotonic() - told >= TELL_EVERY_S:
                        screen.say(f"the log is not moved yet: {why}")
                        told = time.monotonic()
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError as error:
            raise UpRefused(f"the log could not be moved in {MOVE_S_MAX:g} s, and is where it was: {why}") from error
        # Each writes down how far it is: what a server has to tell again at its next start is then nothing.
        with suppress(TimeoutError):
            await asyncio.gather(*(server.stop(SIGTERM) for server in servers))


async def _why_not(
    old: Sequence[Site], new: Sequence[Site], source: Connection, target: Connection, bytes_max: int
) -> str:
    """Copies what is not copied yet; why that is not all of it, in words. Nothing: it is."""
    try:
        before = await _seen(old)
        if not are_settled(before):
            return "its servers have not told each other everything"
        await copying.copy(source, target, replicas=len(new), bytes_max=bytes_max)
        copied = await _seen(new)
        if not are_settled(copied):
            return "the new servers have not told each other everything"
        return "" if are_alike([*before, *await _seen(old), *copied]) else "the copy is not the same"
    except (LogUnavailable, OSError) as error:
        return str(error)


def are_settled(servers: Sequence[Seen]) -> bool:
    """Whether each server has applied all that any of them has agreed upon, and they have the same."""
    groups = [seen.groups for seen in servers if seen.groups is not None]
    for seen in servers:
        wanted = sum(1 + held.consumers for held in seen.streams.values())
        if seen.groups is not None and len(seen.groups) != wanted:
            return False
    are_told = all(group.is_settled for one in groups for group in one.values())
    return are_told and all(one == groups[0] for one in groups) and are_alike(servers)


def are_alike(servers: Sequence[Seen]) -> bool:
    return all(seen.streams == servers[0].streams for seen in servers)


async def _seen(sites: Sequence[Site]) -> list[Seen]:
    """Each server by itself. Raises OSError where one does not tell."""
    return [await asyncio.to_thread(_see, site) for site in sites]


def _see(site: Site) -> Seen:
    # Asked for first: what is applied after that, the streams have too.
    groups = groups_of(_told(site, "/raftz?acc=$G")) if site.membership else None
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
