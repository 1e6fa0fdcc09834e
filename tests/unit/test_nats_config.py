"""Configuration of nats-server, and its storage limit."""

import json
import shutil
from pathlib import Path

import pytest

from tailrace.deploy.local import nats_cluster
from tailrace.deploy.local.nats_server import (
    FILE_BYTES_MAX,
    ServerSpec,
    config,
    go_runtime,
    new_spec,
    storage_limit,
)
from tailrace.deploy.local.options import Sync
from tailrace.deploy.nats.permissions import RIGHTS

SPEC = ServerSpec(
    Path("/data"),
    port=4222,
    monitor_port=8222,
    passwords={"gateway": "secret", "anybody": 'w"d'},
    sync="always",
    file_bytes_max=1000,
)


@pytest.mark.rule("S16")
def test_the_server_listens_on_loopback_with_bounded_messages_and_store() -> None:
    """8 MB a message; the store has a limit and is written through."""
    settings = json.loads(config(SPEC))
    assert {name: value for name, value in settings.items() if name != "accounts"} == {
        "server_name": "nats-server",
        "listen": "127.0.0.1:4222",
        "http": "127.0.0.1:8222",
        "max_payload": 8 * 1024**2,
        "max_pending": 256 * 1024**2,
        "jetstream": {"store_dir": "/data/nats", "sync_interval": "always", "max_file_store": 1000},
    }


def test_the_servers_of_a_cluster_share_a_route_password() -> None:
    """Each has a fixed name and routes to the two others; routes need a password that no user has."""
    specs = nats_cluster.new_specs(Path("/data"), sync="always", file_bytes_max=1000)
    assert [spec.name for spec in specs] == ["nats-1", "nats-2", "nats-3"]
    first = specs[0].member
    assert first is not None
    settings = json.loads(config(specs[0]))
    names = ("pid_file", "lame_duck_duration", "lame_duck_grace_period", "cluster")
    assert {name: settings[name] for name in names} == {
        "pid_file": "/data/cluster/nats-1/nats.pid",
        "lame_duck_duration": "30s",
        "lame_duck_grace_period": "1s",
        "cluster": {
            "name": "tailrace",
            "listen": f"127.0.0.1:{first.port}",
            "authorization": {"user": "tailrace", "password": first.password},
            "no_advertise": True,
            "routes": [f"nats://tailrace:{first.password}@127.0.0.1:{port}" for port in first.others],
            "ping_interval": "2s",
            "ping_max": 3,
            "write_deadline": "3s",
        },
    }
    assert [spec.passwords for spec in specs] == [specs[0].passwords] * 3
    assert [spec.member and spec.member.password for spec in specs] == [first.password] * 3
    assert first.password not in specs[0].passwords.values()
    every = {port for spec in specs for port in (spec.port, spec.monitor_port, spec.member and spec.member.port)}
    assert len(every) == 9
    assert nats_cluster.url(specs, "admin").split(",") == [spec.url("admin") for spec in specs]


@pytest.mark.parametrize(("sync", "interval"), [("always", "always"), ("1s", "1s"), ("default", "2m")])
def test_sync_sets_what_a_power_cut_may_lose(sync: Sync, interval: str) -> None:
    """`default` is nats-server's default of two minutes."""
    spec = ServerSpec(SPEC.directory, 1, 2, {}, sync, 1)
    assert json.loads(config(spec))["jetstream"]["sync_interval"] == interval


def test_two_servers_share_neither_port_nor_password(tmp_path: Path) -> None:
    """Passwords are random, for each start and each user."""
    first = new_spec(tmp_path, sync="always", file_bytes_max=1)
    second = new_spec(tmp_path, sync="always", file_bytes_max=1)
    passwords = [*first.passwords.values(), *second.passwords.values()]
    assert len(set(passwords)) == 2 * len(RIGHTS) == 8
    assert {len(password) for password in passwords} == {32}
    assert first.port != first.monitor_port


def test_the_storage_limit_leaves_a_part_of_the_disk_free(tmp_path: Path) -> None:
    """On a full disk nats-server stops storing without an error; its limit must be reached before.

    Three stores on one disk share the part that may be used.
    """
    assert 0 < storage_limit(tmp_path / "nats") <= FILE_BYTES_MAX
    assert storage_limit(tmp_path / "nats", servers=10**6) * 10**6 <= shutil.disk_usage(tmp_path).free


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the cgroups of a process that may use 16 cores, without a quota."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr("tailrace.deploy.local.nats_server.OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr("tailrace.deploy.local.nats_server.CGROUP_ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("cores", "servers", "threads"), [(1, 1, "1"), (2, 1, "1"), (3, 1, "1"), (8, 1, "4"), (8, 3, "1"), (16, 3, "2")]
)
def test_the_servers_together_run_on_half_of_the_cores(
    cores: int, servers: int, threads: str, cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(cgroups.iterdir())
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert go_runtime({"HOME": "/root"}, servers) == {"GOMAXPROCS": threads}


@pytest.mark.parametrize(
    ("own", "quotas", "threads"),
    [
        ("0::/", {"": "400000 100000"}, "2"),
        ("1:cpu:/old\n0::/", {"": "50000 100000"}, "1"),
        ("0::/system.slice/tailrace.service", {"system.slice/tailrace.service": "450000 100000"}, "2"),
        ("0::/system.slice/tailrace.service", {"system.slice": "600000 100000"}, "3"),
        ("0::/a/b", {"a/b": "max 100000", "a": "400000 100000"}, "2"),
        ("0::/", {"": "max 100000"}, "8"),
        ("0::/", {"": "not a quota"}, "8"),
        ("1:cpu:/old", {"old": "100000 100000"}, "8"),
    ],
)
def test_quotas_of_a_container_a_service_and_its_slice_limit_the_cores(
    own: str, quotas: dict[str, str], threads: str, cgroups: Path
) -> None:
    (cgroups / "own").write_text(f"{own}\n")
    for group, quota in quotas.items():
        (cgroups / group).mkdir(parents=True, exist_ok=True)
        (cgroups / group / "cpu.max").write_text(f"{quota}\n")
    assert go_runtime({}) == {"GOMAXPROCS": threads}


def test_variables_of_gos_runtime_are_passed_on_to_the_server() -> None:
    environ = {"GOMAXPROCS": "3", "GOGC": "50", "GOMEMLIMIT": "1GiB"}
    assert go_runtime(environ | {"HOME": "/root"}) == environ
