"""One of three nats-servers is away: the system says so before the next failure is an outage, and RUNBOOK cures it."""

import shutil
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGHUP, SIGKILL

import httpx2
import msgspec
import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.cli import doctor, status
from tailrace.deploy.local import nats_server, ports
from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.options import Options
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import setup_state
from tailrace.proto.subjects import STREAM
from tests.harness.freeze import freeze
from tests.harness.nats_cluster import Cluster
from tests.harness.until import until

GAUGE = ("tailrace_nats_replicas_behind", {"stream_name": STREAM})
# A server counts as away once its leader has not heard from it for SILENT_S_MAX.
SEEN_S_MAX = 60.0
# Three pings, and as much again on a busy machine.
ROUTE_S_MAX = 15.0


async def _behind(cluster: Cluster) -> list[str] | None:
    """Returns the servers that are away or far behind; None while the test's own connection, or a leader, changes."""
    with suppress(LogUnavailable):
        return (await setup_state.read_setup_state(cluster.connection)).behind
    return None


async def _is_whole(cluster: Cluster) -> bool:
    return await cluster.is_whole() and await _behind(cluster) == []


@pytest.mark.rule("F8")
async def test_a_missing_server_is_named_until_its_replacement_has_caught_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Cluster(tmp_path) as cluster:
        assert await until(lambda: _is_whole(cluster), SEEN_S_MAX)
        dead = (await cluster.followers())[0]
        name = dead.spec.name
        await dead.stop(SIGKILL)

        async def is_named() -> bool:
            # Each stream has a leader of its own, which notices the loss itself.
            found = await _behind(cluster)
            return found == [name] and REGISTRY.get_sample_value(*GAUGE) == 1

        await until(is_named, SEEN_S_MAX)
        environ = {"TAILRACE_NATS_URL": cluster.url}
        text = status.render(await status.fetch(tmp_path, environ))
        assert f"{name} has no current copy: if one more fails, the log stops" in text
        findings = await doctor.examine(Options(data_dir=tmp_path), environ)
        copies = next(one for one in findings if one.name == "Copies")
        assert copies.level == "warning"
        assert copies.detail.startswith(f"{name} has no current copy of a stream")

        # The same name, and an empty disk.
        shutil.rmtree(dead.spec.store)
        await dead.start()
        await until(lambda: _is_whole(cluster), SEEN_S_MAX)

        # The same name, another address, and an empty disk.
        await dead.stop(SIGKILL)
        await until(is_named, SEEN_S_MAX)
        await _move(dead, cluster, tmp_path / "moved")
        await until(lambda: _is_whole(cluster), SEEN_S_MAX)
        assert not any(one.name == "Copies" for one in await doctor.examine(Options(data_dir=tmp_path), environ))


@pytest.mark.rule("F13")
async def test_routes_to_a_silent_server_are_closed_before_it_comes_back(tmp_path: Path) -> None:
    """Otherwise, when a cut network heals, old and new routes disturb each other, and the log stops a second time.

    By nats-server's defaults, it would take a minute.
    """
    async with Cluster(tmp_path) as cluster, httpx2.AsyncClient(trust_env=False) as client:
        other, silent = cluster.nodes[:2]

        async def routes() -> int:
            found = (await client.get(f"http://127.0.0.1:{other.spec.monitor_port}/routez")).json()
            return sum(route["remote_name"] == silent.spec.name for route in found["routes"])

        assert await until(routes)
        freeze(silent)
        await until(lambda: _is_zero(routes), ROUTE_S_MAX)
        silent.signal(SIGCONT)
        await until(routes, SEEN_S_MAX)


async def _is_zero(count: Callable[[], Awaitable[int]]) -> bool:
    return await count() == 0


async def _move(dead: NatsServer, cluster: Cluster, folder: Path) -> None:
    """Starts the server `dead` at another address, and tells the other two by a reload."""
    before = dead.spec.member
    assert before is not None
    port, monitor_port, routes = ports.find_free(3)
    dead.spec = msgspec.structs.replace(
        dead.spec,
        directory=folder,
        port=port,
        monitor_port=monitor_port,
        member=msgspec.structs.replace(before, port=routes),
    )
    await dead.start()
    for node in cluster.nodes:
        if node is not dead and (member := node.spec.member) is not None:
            others = tuple(routes if other == before.port else other for other in member.others)
            node.spec = msgspec.structs.replace(node.spec, member=msgspec.structs.replace(member, others=others))
            nats_server.command(node.spec)
            node.signal(SIGHUP)
