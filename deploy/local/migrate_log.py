"""Migration of the log between one nats-server and a cluster of three.

The log is copied while no other process uses it, and the old log is kept under another name. A single server and a
cluster cannot read each other's stores. An incomplete copy lies in a staging directory, so an interrupted migration
begins anew and loses nothing.

Servers of a cluster that have just started answer with less than they store. Each truncates its store to the last
snapshot, waits for a leader, and then applies the rest of Raft's log again. The leader of a stream answers before it
has applied that. Therefore the log is read only when all servers have applied all committed entries. A copy is complete
when each server has the same messages as all others. A copy that was interrupted may never become complete, so it is
deleted with its servers. A server of the old log that has lost a deletion never gets the same messages as the others.
Then nothing is copied, and the error message says how to repair the server.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from itertools import chain
from pathlib import Path
from signal import SIGTERM
from typing import Any, NamedTuple

import httpx2
import msgspec

from tailrace.deploy.local import nats_cluster, nats_server
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.nats_server import NatsServer, ServerSpec
from tailrace.deploy.local.options import Options
from tailrace.deploy.nats import stream_copy, streams
from tailrace.deploy.nats.permissions import LOG
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection

STAGE = "moving"
OLD = ".before"
# For a log of gigabytes.
MIGRATE_S_MAX = 1800.0
ATTEMPTS_MAX = 5
POLL_S = 0.1
# Interval of the messages that say what `up` waits for.
MESSAGE_EVERY_S = 5.0
# A leader is elected within 9 s; afterwards the state changes with every message.
UNCHANGED_S_MAX = 30.0
RESPONSE_S_MAX = 5.0


class StoredStream(NamedTuple):
    """A stream as one server stores it: its number of messages, its first (0 if it is empty) and last sequence."""

    messages: int
    first: int
    last: int
    consumers: int


class RaftGroup(NamedTuple):
    """One server's progress in the Raft log of a stream or consumer: indices of the log."""

    leader: str
    last: int
    committed: int
    applied: int

    @property
    def is_settled(self) -> bool:
        """Whether the group has a leader, and this server has committed and applied its whole log."""
        return self.leader != "" and self.last == self.committed == self.applied


class ServerDiverged(LogUnavailable):
    """One server has applied the same Raft log as the others, but does not store the same messages."""

    def __init__(self, spec: ServerSpec) -> None:
        super().__init__(f"{spec.directory} does not store the same messages as the other two servers")
        self.spec = spec


class ServerState(NamedTuple):
    """The state that one server reports of itself; `groups` is None for a single server."""

    streams: Mapping[str, StoredStream]
    groups: Mapping[str, RaftGroup] | None


def server_specs(options: Options, data_dir: Path) -> list[ServerSpec]:
    """Returns the servers for `options`, with new ports and passwords, for a new or existing log in `data_dir`."""
    if options.cluster:
        limit = nats_server.storage_limit(store_of(options, data_dir), nats_cluster.NODES)
        return nats_cluster.new_specs(data_dir, sync=options.sync, file_bytes_max=limit)
    limit = nats_server.storage_limit(store_of(options, data_dir))
    return [nats_server.new_spec(data_dir, sync=options.sync, file_bytes_max=limit)]


def store_of(options: Options, data_dir: Path) -> Path:
    """Returns the directory of nats-server's data: of the cluster, or of the single server."""
    return data_dir / (nats_cluster.DIRECTORY if options.cluster else nats_server.STORE)


async def migrate(options: Options, console: Console) -> None:
    """Converts an existing log to one server or a cluster, as `options` say. Raises UpRefused, LogUnavailable."""
    other = Options(data_dir=options.data_dir, cluster=not options.cluster, sync=options.sync)
    old, new = store_of(other, options.data_dir), store_of(options, options.data_dir)
    if not await asyncio.to_thread(_has_streams, old):
        return
    if not await asyncio.to_thread(_has_streams, new):
        shutil.rmtree(new, ignore_errors=True)
        console.log(f"copying the log to {'three servers' if options.cluster else 'one server'}")
        stage = options.data_dir / STAGE
        try:
            async with asyncio.timeout(MIGRATE_S_MAX):
                await copy(server_specs(other, options.data_dir), options, stage, console)
        except TimeoutError as error:
            raise UpRefused(
                f"the log could not be copied within {MIGRATE_S_MAX:g} s; nothing was changed. Try again"
            ) from error
        # The copy was not synced message by message.
        os.sync()
        store_of(options, stage).rename(new)
        shutil.rmtree(stage)
    # If both have streams, the copy was complete and has not been used yet.
    kept = old.with_name(old.name + OLD)
    shutil.rmtree(kept, ignore_errors=True)
    old.rename(kept)
    console.log(f"the previous log is kept in {kept}; delete it when you no longer need it")


def _has_streams(store: Path) -> bool:
    """Returns whether a store has a stream. A start that was refused leaves one without."""
    return any(store.rglob("streams/*"))


async def copy(
    old: Sequence[ServerSpec], options: Options, stage: Path, console: Console, *, keeps_limits: bool = False
) -> None:
    """Returns when there is a complete copy below `stage` and all servers have stopped.

    With `keeps_limits`, the streams keep their byte limits, which otherwise follow from the space on this disk. Raises
    UpRefused, LogUnavailable.
    """
    async with AsyncExitStack() as stack:
        source, servers = await _start(old, stack)
        try:
            await _wait_until_equal(console, old, timeout_s=MIGRATE_S_MAX)
        except ServerDiverged as error:
            broken = nats_server.streams_dir(error.spec.store)
            raise UpRefused(
                f"{error}; nothing was changed. Delete {broken}, start `tailrace up --cluster` until it is ready, "
                "so that this server copies everything from the others, and try again"
            ) from error
        for attempts_left in reversed(range(ATTEMPTS_MAX)):
            try:
                new = _new_stage(options, stage)
                if keeps_limits:
                    # While a stream is restored, a server reserves its limit and stores its messages.
                    limit = 2 * old[0].file_bytes_max
                    new = [msgspec.structs.replace(spec, file_bytes_max=limit) for spec in new]
                bytes_max = None if keeps_limits else streams.log_bytes_max(new[0].file_bytes_max)
                await _copy_once(old, source, new, bytes_max, console)
                break
            except LogUnavailable as error:
                if not attempts_left:
                    shutil.rmtree(stage, ignore_errors=True)
                    raise UpRefused(
                        f"the log could not be copied ({error}); nothing was changed. The copy needs space beside the "
                        "log. Make room, and try again"
                    ) from error
                console.log(f"copying the log again: {error}")
        await _stop(servers, source)


def _new_stage(options: Options, stage: Path) -> list[ServerSpec]:
    shutil.rmtree(stage, ignore_errors=True)
    stage.mkdir(mode=0o700)
    return server_specs(options, stage)


async def _copy_once(
    old: Sequence[ServerSpec], source: Connection, new: Sequence[ServerSpec], bytes_max: int | None, console: Console
) -> None:
    """Raises LogUnavailable if the copy was interrupted."""
    async with AsyncExitStack() as stack:
        target, servers = await _start(new, stack)
        await _wait_until_equal(console, new)
        await stream_copy.copy_streams(source, target, replicas=len(new), bytes_max=bytes_max)
        # Messages that expire in the meantime leave both logs.
        await _wait_until_equal(console, old, new)
        await _stop(servers, target)


async def _start(specs: Sequence[ServerSpec], stack: AsyncExitStack) -> tuple[Connection, list[NatsServer]]:
    servers = []
    for spec in specs:
        spec.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        servers.append(await stack.enter_async_context(NatsServer(spec.directory, spec=spec)))
    connection = await Connection.open(",".join(server.url for server in servers), "tailrace-moving")
    stack.push_async_callback(connection.close)
    return connection, servers


async def _stop(servers: Sequence[NatsServer], connection: Connection) -> None:
    """Stops the servers in order, so that each writes a snapshot and has nothing to apply at its next start."""
    await connection.close()
    with suppress(TimeoutError):
        await asyncio.gather(*(server.stop(SIGTERM) for server in servers))


async def _wait_until_equal(console: Console, *logs: Sequence[ServerSpec], timeout_s: float = UNCHANGED_S_MAX) -> None:
    """Returns when the servers of each log are settled, and all servers store the same.

    Raises LogUnavailable after `timeout_s` without a change, and ServerDiverged after UNCHANGED_S_MAX without a change
    if a server has diverged.
    """
    names = " and ".join(f"{len(specs)} in {specs[0].directory.parent}" for specs in logs)
    last: list[list[ServerState]] = []
    changed = logged = time.monotonic()
    while True:
        states: list[list[ServerState]] = []
        with suppress(httpx2.HTTPError):  # a server does not answer yet
            states = [[await asyncio.to_thread(_read_state, spec) for spec in specs] for specs in logs]
        if states and all(map(are_settled, states)) and are_equal(list(chain(*states))):
            return
        now = time.monotonic()
        if states != last:
            last, changed = states, now
        if now - changed >= UNCHANGED_S_MAX:
            for specs, servers in zip(logs, states, strict=False):  # no states while a server does not answer
                if (odd := find_diverged(servers)) is not None:
                    raise ServerDiverged(specs[odd])
        if now - changed >= timeout_s:
            raise LogUnavailable(f"the servers do not reach the same state: {names}")
        if now - logged >= MESSAGE_EVERY_S:
            console.log(f"waiting until the servers have the same state: {names}")
            logged = now
        await asyncio.sleep(POLL_S)


def are_settled(servers: Sequence[ServerState]) -> bool:
    """Returns whether each server has applied all committed entries, and all have the same state."""
    return _have_applied(servers) and are_equal(servers)


def find_diverged(servers: Sequence[ServerState]) -> int | None:
    """Returns the index of the only server that stores other messages than the other servers, which agree.

    Returns None without such a server, or if it may still agree: not all servers have applied the same Raft log.
    """
    if not _have_applied(servers):
        return None
    for index, state in enumerate(servers):
        others = [*servers[:index], *servers[index + 1 :]]
        if len(others) > 1 and are_equal(others) and state.streams != others[0].streams:
            return index
    return None


def _have_applied(servers: Sequence[ServerState]) -> bool:
    groups = [state.groups for state in servers if state.groups is not None]
    for state in servers:
        # One group for the cluster's metadata, each stream and each consumer.
        expected = 1 + sum(1 + stream.consumers for stream in state.streams.values())
        if state.groups is not None and len(state.groups) != expected:
            return False
    return all(group.is_settled for one in groups for group in one.values()) and all(one == groups[0] for one in groups)


def are_equal(servers: Sequence[ServerState]) -> bool:
    return all(state.streams == servers[0].streams for state in servers)


def _read_state(spec: ServerSpec) -> ServerState:
    # The groups first: entries applied by then are in the streams that are read afterwards.
    paths = ("/raftz", f"/raftz?acc={LOG}")
    groups = {k: v for path in paths for k, v in parse_groups(_get(spec, path)).items()} if spec.member else None
    return ServerState(parse_streams(_get(spec, "/jsz?accounts=true&streams=true")), groups)


def parse_streams(jsz: dict[str, Any]) -> dict[str, StoredStream]:
    """Returns the streams of all accounts in a server's `/jsz` response."""
    streams = {}
    for account in jsz.get("account_details") or []:
        for stream in account.get("stream_detail") or []:
            state = stream["state"]
            first = state["first_seq"] if state["messages"] else 0
            streams[stream["name"]] = StoredStream(state["messages"], first, state["last_seq"], state["consumer_count"])
    return streams


def parse_groups(raftz: dict[str, Any]) -> dict[str, RaftGroup]:
    """Returns the groups in a server's `/raftz` response for one account."""
    return {
        name: RaftGroup(group.get("leader", ""), group["pindex"], group["committed"], group["applied"])
        for groups in raftz.values()
        for name, group in groups.items()
    }


def _get(spec: ServerSpec, path: str) -> dict[str, Any]:
    url = f"http://127.0.0.1:{spec.monitor_port}{path}"
    # The URL is plain HTTP. verify=False spares the reading of the system's certificates.
    response = httpx2.get(url, timeout=RESPONSE_S_MAX, trust_env=False, verify=False)
    response.raise_for_status()
    return msgspec.json.decode(response.content, type=dict[str, Any])
