"""The text of nats-server's configuration, and how much of the disk it may take."""

from pathlib import Path

import pytest

from deploy.nats_server import FILE_BYTES_MAX, Site, choose, config, room_bytes
from deploy.options import Sync

SITE = Site(Path("/data"), port=4222, monitor_port=8222, token="secret", sync="always", file_bytes_max=1000)


def test_the_configuration_is_what_it_was_when_it_was_tried() -> None:
    """Loopback only, a token, 8 MB a message, and a store that is bounded and written through."""
    assert (
        config(SITE)
        == """\
server_name: tailrace
listen: "127.0.0.1:4222"
http: "127.0.0.1:8222"
authorization { token: "secret" }
max_payload: 8MB
jetstream {
  store_dir: "/data/nats"
  sync_interval: always
  max_file_store: 1000
}
"""
    )


@pytest.mark.parametrize(("sync", "line"), [("always", "always"), ("1s", "1s"), ("default", "2m")])
def test_sync_says_what_a_power_cut_may_take(sync: Sync, line: str) -> None:
    """`default` is NATS's own two minutes, written out."""
    site = Site(SITE.folder, 1, 2, "", sync, 1)
    assert f"  sync_interval: {line}\n" in config(site)


def test_two_sites_share_neither_port_nor_token(tmp_path: Path) -> None:
    """Each start has a token that nobody can know before."""
    first = choose(tmp_path, sync="always", file_bytes_max=1)
    second = choose(tmp_path, sync="always", file_bytes_max=1)
    assert first.token != second.token
    assert len(first.token) == 32
    assert first.port != first.monitor_port


def test_the_log_is_bounded_and_leaves_a_part_of_the_disk_free(tmp_path: Path) -> None:
    """A disk that is full to the brim is silence; the server has to say "full" before."""
    room = room_bytes(tmp_path / "nats")
    assert 0 < room <= FILE_BYTES_MAX
