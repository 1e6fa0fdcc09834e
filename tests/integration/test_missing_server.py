"""One of three nats-servers is away: the system says so before the next failure is an outage, and RUNBOOK cures it."""

import shutil
from contextlib import suppress
from pathlib import Path
from signal import SIGHUP, SIGKILL

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
from tests.harness.nats_cluster import Cluster
from tests.harness.until import until

GAUGE = ("tailrace_nats_replicas_behind", {"stream_name": STREAM})
# A server counts as away once its leader has not heard from it for SILENT_S_MAX.
SEEN_S_MAX = 60.0


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
