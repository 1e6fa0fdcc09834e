"""Commands of a user without permission for the data directory: one sentence names the file. There is no traceback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tailrace.deploy.cli import backup, migrate_database, restart
from tailrace.deploy.cli.doctor import examine
from tailrace.deploy.cli.main import main
from tailrace.deploy.local.errors import UpRefused
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.ports import listen

OTHER_UID = 65534
# Without an entry in /etc/passwd.
UNKNOWN_UID = 12_345
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
# Imported before the change of the user: the other user has no permission to read the installation.
assert backup
assert migrate_database
assert restart
assert "localhost".encode("idna")


@contextmanager
def other_user() -> Iterator[None]:
    os.seteuid(OTHER_UID)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data directory that only root may read."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    # The other user may not read the certificates of this test session.
    monkeypatch.delenv("SSL_CERT_FILE")
    (folder := tmp_path / "data").mkdir(mode=0o700)
    (folder / "tailrace.db").touch()
    (folder / "nats").mkdir()
    for parent in tmp_path.parents:
        if "/pytest-of-" in str(parent):
            parent.chmod(0o711)
    tmp_path.chmod(0o711)
    return folder


@pytest.fixture
def shared_data(data: Path) -> Path:
    """A data directory in which only the store of nats-server cannot be read."""
    data.chmod(0o777)
    (data / "nats").chmod(0)
    return data


def test_a_user_without_a_home_directory_gets_the_root_directory_as_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user of `docker run --user`, or of a job, may have neither HOME nor an entry in /etc/passwd."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    # A `.tailrace` in the current directory would be the default.
    monkeypatch.chdir("/")
    os.setreuid(UNKNOWN_UID, -1)
    try:
        with pytest.raises(SystemExit, match=r"^0$"):
            main(["up", "--help"])
    finally:
        os.setreuid(0, -1)
    assert "(default: /.local/share/tailrace)" in capsys.readouterr().out


def test_a_command_works_in_a_folder_that_its_user_may_not_enter(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`sudo -u tailrace tailrace keys create`, which docs/SYSTEMD.md says, stays in the folder of root."""
    (data / ".tailrace").mkdir()
    monkeypatch.chdir(data)
    with other_user(), pytest.raises(SystemExit, match=r"^0$"):
        main(["up", "--help"])
    assert "(default: .tailrace)" not in capsys.readouterr().out


def test_a_port_that_only_root_may_use_is_refused_with_the_option_for_another_port() -> None:
    with other_user(), pytest.raises(UpRefused, match=r"Permission denied\): choose another port with --port$"):
        listen("127.0.0.1", 80)


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (["backup", "b.tar", "--data", "DATA"], "tailrace.db"),
        (["migrate-database", "DATA/tailrace.db", "b"], "tailrace.db"),
        (["restart", "--data", "DATA"], "lock"),
    ],
)
def test_a_command_names_the_file_that_this_user_may_not_read(
    data: Path, command: list[str], file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with other_user():
        status = main([part.replace("DATA", str(data)) for part in command])
    printed = capsys.readouterr().err
    assert (status, printed.count("\n")) == (1, 1)
    assert f"{data}/{file}: Permission denied" in printed


async def test_doctor_reports_a_data_directory_that_this_user_may_not_read(data: Path) -> None:
    with other_user():
        found = {one.name: one for one in await examine(Options(port=0, data_dir=data), {})}
    for name in ("Disk", "Database"):
        assert found[name].level == "error"
        assert found[name].detail.startswith(f"{data}/")
        assert "Permission denied" in found[name].detail
        assert "user" in found[name].action


async def test_doctor_reports_a_store_of_nats_that_this_user_may_not_read(shared_data: Path) -> None:
    with other_user():
        disk = next(one for one in await examine(Options(port=0, data_dir=shared_data), {}) if one.name == "Disk")
    assert (disk.level, disk.detail) == ("error", f"{shared_data}/nats: Permission denied")
