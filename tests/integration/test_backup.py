"""`tailrace backup` and `restore`: what a restored `up` has, and which files are refused."""

import asyncio
import io
import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import httpx2
import msgspec
import pytest

from tailrace.deploy.cli.main import main
from tailrace.deploy.local import backup, data_dir
from tailrace.deploy.local.errors import UpRefused
from tailrace.persistence.store import Store
from tests.harness.until import until
from tests.harness.up import LEAN, running


@pytest.fixture
async def saved(tmp_path: Path) -> Path:
    """A backup of a data directory with a database and two files of NATS."""
    folder = tmp_path / "data"
    store = await Store.open(folder / "tailrace.db", busy_timeout_s=1)
    await store.migrate()
    await store.close()
    for number in range(2):
        path = folder / "nats" / "jetstream" / f"{number}.blk"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(100_000))
    backup.write(folder, tmp_path / "saved.tar")
    return tmp_path / "saved.tar"


def rewrite(path: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> None:
    """Writes an archive again, with each of its members as `change` returns it."""
    with tarfile.open(path) as tar:
        members = [(one.name, file.read()) for one in tar if (file := tar.extractfile(one)) is not None]
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            if (changed := change(name, content)) is not None:
                member = tarfile.TarInfo(changed[0])
                member.size = len(changed[1])
                tar.addfile(member, io.BytesIO(changed[1]))


def with_manifest(**given: object) -> Callable[[str, bytes], tuple[str, bytes]]:
    def change(name: str, content: bytes) -> tuple[str, bytes]:
        return (name, msgspec.json.encode(json.loads(content) | given) if name == backup.MANIFEST else content)

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (with_manifest(format=backup.FORMAT + 1), "restore it with that version"),
        (with_manifest(schema=999, tailrace="9.0"), "made by Tailrace 9.0 with schema 999"),
        (with_manifest(files="none"), "the manifest cannot be read"),
        (lambda name, content: None if name == backup.MANIFEST else (name, content), "cut short"),
        (lambda name, content: None if name.endswith("0.blk") else (name, content), "0.blk is missing or damaged"),
        (lambda name, content: (name, content[:-1] + b"x" if name.endswith("1.blk") else content), "1.blk is missing"),
        (
            lambda name, content: (f"../{name}" if name.endswith("1.blk") else name, content),
            "not a file of a backup",
        ),
        (lambda name, content: (f"{name}.old" if name.endswith("1.blk") else name, content), "1.blk is missing"),
    ],
)
def test_a_damaged_or_newer_backup_is_refused_before_anything_changes(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[..., object], sentence: str
) -> None:
    rewrite(saved, change)  # type: ignore[arg-type]
    target = tmp_path / "new" / "data"
    assert main(["restore", str(saved), "--data", str(target)]) == 1
    assert sentence in capsys.readouterr().err
    assert not target.parent.exists()


def test_a_backup_that_is_cut_short_anywhere_is_refused(saved: Path, tmp_path: Path) -> None:
    whole = saved.read_bytes()
    assert backup.check(saved).files
    for share in range(1, 20):
        saved.write_bytes(whole[: len(whole) * share // 20])
        with pytest.raises(UpRefused, match=r"cut short|not a whole backup"):
            backup.check(saved)


def test_a_running_up_and_a_used_directory_are_refused(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file is overwritten, and no half of a backup is left."""
    folder = tmp_path / "data"
    with data_dir.lock(folder):
        assert main(["backup", str(tmp_path / "other.tar"), "--data", str(folder)]) == 1
    assert "in use by `tailrace up`" in capsys.readouterr().err
    assert main(["restore", str(saved), "--data", str(folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main(["backup", str(saved), "--data", str(folder)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["backup", str(tmp_path / "no-folder" / "b.tar"), "--data", str(folder)]) == 1
    assert main(["backup", str(tmp_path / "other.tar"), "--data", str(tmp_path / "empty")]) == 1
    assert "has no tailrace.db" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "saved.tar"]


def test_a_backup_names_its_directory_and_leaves_other_files(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "b.tar.database"
    other.write_text("another file")
    for status in (0, 1):
        assert main(["backup", str(tmp_path / "b.tar"), "--data", str(saved.parent / "data")]) == status
    assert capsys.readouterr().out.endswith(f" bytes, of {saved.parent / 'data'}\n")
    assert other.read_text() == "another file"


def test_a_backup_is_restored_into_the_current_folder_and_not_written_over_one(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A path such as `.` has no name."""
    new = tmp_path / "new"
    new.mkdir()
    monkeypatch.chdir(new)
    assert main(["backup", ".", "--data", "../data"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["restore", str(saved), "--data", "."]) == 0
    assert (new / "tailrace.db").is_file()
    assert main(["restore", str(saved), "--data", "/"]) == 1
    assert "/ is not empty" in capsys.readouterr().err


@pytest.mark.timeout(150)
async def test_a_restored_up_has_its_turns_keys_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The turn is read from the log and from the database; the first key is needed at once and afterwards."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with running(first, *LEAN) as up:
        url = await up.ready()
        turn = httpx2.post(f"{url}/v1/turns", json={"message": "#sim words=5 rate=0", "user": "ann"}).json()
        events = httpx2.get(url + turn["links"]["events"]).text
        assert await asyncio.to_thread(main, ["keys", "create", "--tenant", "local", "--data", str(up.folder)]) == 0
        key = capsys.readouterr().out.split()[0]
        await until(lambda: httpx2.get(url + turn["links"]["self"]).status_code == 401)
        up.process.send_signal(signal.SIGTERM)
        up.process.wait()
    capsys.readouterr()
    assert main(["backup", str(tmp_path / "all.tar"), "--json", "--data", str(first / "data")]) == 0
    assert main(["restore", str(tmp_path / "all.tar"), "--json", "--data", str(second / "data")]) == 0
    made, restored = map(json.loads, capsys.readouterr().out.splitlines())
    assert (made["files"], restored["data"]) == (restored["files"], str(second / "data"))
    with running(second, *LEAN) as up, httpx2.Client(base_url=await up.ready()) as client:
        assert "Authorization: Bearer YOUR-KEY" in up.find_line("  curl ")
        assert client.get(turn["links"]["self"]).status_code == 401
        client.headers["authorization"] = f"Bearer {key}"
        # Each stream begins with another wait before a reconnect.
        assert client.get(turn["links"]["events"]).text.partition("data:")[2] == events.partition("data:")[2] != ""
        (found,) = client.get("/v1/turns?user=ann").json()["data"]
        assert (found["turn"], found["outcome"]) == (turn["turn"], "completed")
