"""The text of nats-server's configuration, and how much of the disk it may take."""

import re
import shutil
from pathlib import Path

import msgspec
import pytest

from tailrace.deploy.local import nats_cluster
from tailrace.deploy.local.nats_server import FILE_BYTES_MAX, ROOT_USER, ServerSpec, config, new_spec, storage_limit
from tailrace.deploy.local.options import Sync
from tailrace.proto.nats.permissions import RIGHTS, imports_of

SITE = ServerSpec(
    Path("/data"),
    port=4222,
    monitor_port=8222,
    passwords={"gateway": "secret", "anybody": 'w"d'},
    sync="always",
    file_bytes_max=1000,
)


@pytest.mark.rule("S16")
def test_the_configuration_is_what_it_was_when_it_was_tried() -> None:
    """Loopback only, an account and a user each, 8 MB a message, and a store that is bounded and written through."""
    assert (
        re.sub(
            r"( +\{ (service|stream): .*\n)+", "      WAYS\n", re.sub(r"allow: .*]", "allow: [SUBJECTS]", config(SITE))
        )
        == """\
server_name: nats-server
listen: "127.0.0.1:4222"
http: "127.0.0.1:8222"
accounts {
  TAILRACE {
    jetstream: enabled
    users: [
      { user: anybody, password: "w\\"d" }
    ]
    exports: [
      WAYS
    ]
    imports: [
      WAYS
    ]
  }
  TAILRACE_GATEWAY {
    users: [
      { user: gateway, password: "secret", permissions: {
        publish: { allow: [SUBJECTS] }
        subscribe: { allow: [SUBJECTS] }
      } }
    ]
    exports: [
    ]
    imports: [
      WAYS
    ]
  }
  TAILRACE_GENERATORS {
    users: [
    ]
    exports: [
      WAYS
    ]
    imports: [
      WAYS
    ]
  }
  TAILRACE_PERSISTENCE {
    users: [
    ]
    exports: [
      WAYS
    ]
    imports: [
      WAYS
    ]
  }
}
max_payload: 8MB
jetstream {
  store_dir: "/data/nats"
  sync_interval: always
  max_file_store: 1000
}
"""
    )


def test_a_way_is_open_to_who_takes_it_and_says_how_many_answers_it_brings() -> None:
    """What one account exports it exports to those that import it; a read of many messages is answered by many."""
    said = config(SITE)
    for line in (
        '{ service: "turns.*.*.request", accounts: [TAILRACE_GATEWAY, TAILRACE_GENERATORS] }',
        '{ service: { account: TAILRACE, subject: "turns.*.*.request" } }',
        '{ service: "$JS.API.DIRECT.GET.KV_KEYS", response_type: stream, response_threshold: "30s", accounts: [',
        '{ stream: "keys.>", accounts: [TAILRACE_GATEWAY] }',
        '{ stream: { account: TAILRACE, subject: "keys.>" } }',
        '{ service: "queries.*.models", accounts: [TAILRACE_GATEWAY, TAILRACE] }',
        '{ service: { account: TAILRACE_GENERATORS, subject: "queries.*.models" } }',
    ):
        assert line in said
    assert len(re.findall(r"\{ s\w+: \{ account:", said)) == sum(len(imports_of(user)) for user in RIGHTS)


def test_what_was_stored_before_there_were_accounts_is_read_without_any() -> None:
    """By whoever moves it: the server finds it in the account that has no name."""
    said = config(msgspec.structs.replace(SITE, passwords={ROOT_USER: "w"}, has_one_account=True))
    assert 'authorization { user: everybody, password: "w" }\nmax_payload' in said
    assert "accounts" not in said


def test_the_servers_of_a_cluster_find_each_other_by_a_password() -> None:
    """Each has a name that stays and two fellows, lets nobody in without the password, and tells clients of nobody."""
    specs = nats_cluster.new_specs(Path("/data"), sync="always", file_bytes_max=1000)
    assert [spec.name for spec in specs] == ["nats-1", "nats-2", "nats-3"]
    first = specs[0].member
    assert first is not None
    assert (
        config(specs[0]).partition("pid_file")[2]
        == f"""\
: "/data/cluster/nats-1/nats.pid"
lame_duck_duration: "30s"
lame_duck_grace_period: "1s"
cluster {{
  name: tailrace
  listen: "127.0.0.1:{first.port}"
  authorization {{ user: tailrace, password: "{first.password}" }}
  no_advertise: true
  routes: ["nats://tailrace:{first.password}@127.0.0.1:{first.others[0]}", \
"nats://tailrace:{first.password}@127.0.0.1:{first.others[1]}"]
}}
"""
    )
    assert [spec.passwords for spec in specs] == [specs[0].passwords] * 3
    assert [spec.member and spec.member.password for spec in specs] == [first.password] * 3
    assert first.password not in specs[0].passwords.values()
    every = {port for spec in specs for port in (spec.port, spec.monitor_port, spec.member and spec.member.port)}
    assert len(every) == 9
    assert nats_cluster.url(specs, "admin").split(",") == [spec.url("admin") for spec in specs]


def test_the_servers_of_a_cluster_share_the_disk(tmp_path: Path) -> None:
    """Three stores on one disk may not each take most of it."""
    assert storage_limit(tmp_path / "nats", servers=10**6) * 10**6 <= shutil.disk_usage(tmp_path).free


@pytest.mark.parametrize(("sync", "line"), [("always", "always"), ("1s", "1s"), ("default", "2m")])
def test_sync_says_what_a_power_cut_may_take(sync: Sync, line: str) -> None:
    """`default` is NATS's own two minutes, written out."""
    spec = ServerSpec(SITE.directory, 1, 2, {}, sync, 1)
    assert f"  sync_interval: {line}\n" in config(spec)


def test_two_sites_share_neither_port_nor_password(tmp_path: Path) -> None:
    """Each start has passwords that nobody can know before, and no role can guess another's."""
    first = new_spec(tmp_path, sync="always", file_bytes_max=1)
    second = new_spec(tmp_path, sync="always", file_bytes_max=1)
    passwords = [*first.passwords.values(), *second.passwords.values()]
    assert len(set(passwords)) == 2 * len(RIGHTS) == 8
    assert {len(password) for password in passwords} == {32}
    assert first.port != first.monitor_port


def test_the_log_is_bounded_and_leaves_a_part_of_the_disk_free(tmp_path: Path) -> None:
    """A disk that is full to the brim is silence; the server has to say "full" before."""
    room = storage_limit(tmp_path / "nats")
    assert 0 < room <= FILE_BYTES_MAX
