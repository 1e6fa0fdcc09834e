"""The log of one nats-server is moved to three, or back: copied while nobody uses it, and what it was is put aside.

Neither sees what the other stored. Until a copy is whole it is not where a log is looked for, so that whoever is
stopped in the middle begins anew, and nothing is lost.
"""

import asyncio
import json
import os
import shutil
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from deploy import nats_cluster, nats_server, streams
from deploy.nats_server import NatsServer, Site
from deploy.options import Options
from deploy.refusal import UpRefused
from deploy.screen import Screen
from proto.errors import LogUnavailable
from proto.log import Connection, copying
from proto.log.streams import behind

STAGE = "moving"
ASIDE = ".before"
# Of a log of gigabytes.
MOVE_S_MAX = 1800.0
LOOK_EVERY_S = 0.1
TELL_S_MAX = 5.0

Held = dict[str, tuple[int, int]]
"""Messages and last sequence of each stream, as one server has it."""


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
        await _copy(sites_of(other, options.folder), sites)
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


async def _copy(old: Sequence[Site], new: Sequence[Site]) -> None:
    async with AsyncExitStack() as stack:
        connections = []
        for sites in (old, new):
            urls = []
            for site in sites:
                site.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                server = await stack.enter_async_context(NatsServer(site.folder, site=site))
                stack.callback(server.log.unlink, missing_ok=True)
                urls.append(server.url)
            connection = await Connection.open(",".join(urls), "tailrace-moving")
            stack.push_async_callback(connection.close)
            connections.append(connection)
        source, target = connections
        bytes_max = streams.log_bytes_max(new[0].file_bytes_max)
        why = ""
        try:
            async with asyncio.timeout(MOVE_S_MAX):
                while True:
                    # The servers of a cluster answer before they have found each other.
                    # One that leads may not have read all of what it has, and one that follows says so too early.
                    try:
                        before = await _held(old)
                        if are_alike(before):
                            await copying.copy(source, target, replicas=len(new), bytes_max=bytes_max)
                            if not await behind(target) and are_alike([*before, *await _held(new)]):
                                return
                        why = ": its servers do not have the same"
                    except (LogUnavailable, OSError) as error:
                        why = f": {error}"
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError as error:
            raise UpRefused(f"the log could not be moved in {MOVE_S_MAX:g} s, and is where it was{why}") from error


def are_alike(held: Sequence[Held]) -> bool:
    return all(one == held[0] for one in held)


async def _held(sites: Sequence[Site]) -> list[Held]:
    """What each server has by itself, whoever leads. Raises OSError where it does not tell."""
    return [held(await asyncio.to_thread(_told, site)) for site in sites]


def held(told: dict[str, Any]) -> Held:
    """Of a server's `/jsz` with all streams of all accounts."""
    accounts = told.get("account_details") or []
    streams_of = [stream for account in accounts for stream in account.get("stream_detail") or []]
    return {stream["name"]: (stream["state"]["messages"], stream["state"]["last_seq"]) for stream in streams_of}


def _told(site: Site) -> dict[str, Any]:
    url = f"http://127.0.0.1:{site.monitor_port}/jsz?accounts=true&streams=true"
    with urllib.request.urlopen(url, timeout=TELL_S_MAX) as answer:  # our own server's
        told: dict[str, Any] = json.load(answer)
        return told
