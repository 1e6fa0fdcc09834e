"""`tailrace backup` and `restore`: what a restored `up` has, and which files are refused."""

import asyncio
import hashlib
import io
import json
import os
import signal
import socket
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from signal import SIGHUP, SIGTERM, Signals
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.deploy.cli.copy_database import TableDigest, copy_database
from tailrace.deploy.cli.main import main
from tailrace.deploy.local import backup, data_dir
from tailrace.deploy.local.errors import UpRefused
from tailrace.persistence.database import Database
from tailrace.proto.restores import EPOCHS_AT
from tests.harness.displayed_text import SAYS
from tests.harness.displayed_text import tailrace as displayed
from tests.harness.generator_in_loop import words
from tests.harness.open_store import open_store
from tests.harness.sse_parser import EventStream, SseEvent, parse
from tests.harness.until import until
from tests.harness.up import CHECKOUT, LEAN, Up, running

Refuses = Callable[..., None]


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Refuses:
    """Checks that a command fails with an error message that contains the sentence."""

    def check(sentence: str, *arguments: object) -> None:
        assert main(list(map(str, arguments))) == 1
        assert sentence in capsys.readouterr().err

    return check


@pytest.fixture
async def backup_path(tmp_path: Path) -> Path:
    """A backup of a data directory with a database and two files of NATS."""
    folder = tmp_path / "data"
    async with open_store(folder / "tailrace.db"):
        pass
    for number in range(2):
        path = folder / "nats" / "jetstream" / f"{number}.blk"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(100_000))
    backup.write(folder, tmp_path / "saved.tar")
    return tmp_path / "saved.tar"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    backup_path: Path, tmp_path: Path, refuses: Refuses, change: Callable[..., object], sentence: str
) -> None:
    rewrite(backup_path, change)  # type: ignore[arg-type]
    refuses(sentence, "restore", backup_path, "--data", tmp_path / "new" / "data")
    assert not (tmp_path / "new").exists()


def test_a_backup_that_is_cut_short_anywhere_is_refused(backup_path: Path, tmp_path: Path) -> None:
    whole = backup_path.read_bytes()
    assert backup.check(backup_path).files
    for share in range(1, 20):
        backup_path.write_bytes(whole[: len(whole) * share // 20])
        with pytest.raises(UpRefused, match=r"cut short|not a whole backup"):
            backup.check(backup_path)


def test_a_running_up_and_a_used_directory_are_refused(
    backup_path: Path, tmp_path: Path, refuses: Refuses, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file is overwritten, and no half of a backup is left. A path such as `.` has no name."""
    folder, other = tmp_path / "data", tmp_path / "other.tar"
    for command in ("up", "backup"):
        with data_dir.lock(folder, command):
            used = f"in use by `tailrace {command}` (pid {os.getpid()}): stop it"
            refuses(used, "backup", other, "--data", folder)
            refuses(used, "restore", backup_path, "--data", folder)
    refuses("is not empty", "restore", backup_path, "--data", folder)
    refuses("/ is not empty", "restore", backup_path, "--data", "/")
    refuses("exists already", "backup", backup_path, "--data", folder)
    refuses("no-folder", "backup", tmp_path / "no-folder" / "b.tar", "--data", folder)
    refuses("wrong.tar cannot be read: No such file or directory", "restore", "--check", tmp_path / "wrong.tar")
    refuses("has no tailrace.db", "backup", other, "--data", tmp_path / "empty")
    assert names(tmp_path) == ["data", "saved.tar"]
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    refuses("exists already", "backup", ".", "--data", folder)
    assert main(["restore", str(backup_path), "--data", "."]) == 0
    assert (tmp_path / "new" / "tailrace.db").is_file()


def test_a_backup_names_its_directory_and_leaves_other_files(
    backup_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "b.tar.database"
    other.write_text("another file")
    for status in (0, 1):
        assert main(["backup", str(tmp_path / "b.tar"), "--data", str(backup_path.parent / "data")]) == status
    assert capsys.readouterr().out.endswith(f" bytes, of {backup_path.parent / 'data'}\n")
    assert other.read_text() == "another file"


@pytest.fixture
def projects(backup_path: Path) -> Path:
    """The folder of a project, in the data directory that `saved` was made of."""
    folder = backup_path.parent / "data" / "projects" / "acme" / "shop"
    folder.mkdir(parents=True)
    return folder


def back_up_and_restore(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], Path]:
    """Returns what `backup` prints as JSON, and the restored folder of the project."""
    file, target = folder / "all.tar", folder / "restored"
    assert main(["backup", str(file), "--json", "--data", str(folder / "data")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert main(["restore", str(file), "--data", str(target)]) == 0
    return printed, target / "projects" / "acme" / "shop"


NAMES = (
    *(b"caf\xe9", b"caf\xc3\xa9", rb"back\slash", rb"\x41", b"line\nbreak", b"\n20 hdrcharset=\xff\n", b" "),
    *(b"\x1b[2J\xff", b"a" * 255),
)


def test_any_file_name_of_a_project_is_restored(
    projects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that is not UTF-8, or that tar's own headers could not hold."""
    for name in map(os.fsdecode, NAMES):
        for path in (projects / name, projects / "folder" / name / "file"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(os.fsencode(name))
    expected = content_of(projects)
    printed, restored = back_up_and_restore(tmp_path, capsys)
    assert (content_of(restored), printed["left_out"]) == (expected, [])


def content_of(folder: Path) -> dict[bytes, bytes]:
    return {os.fsencode(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_restore_keeps_execute_bits_empty_folders_and_links(
    projects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No link is followed: what it names outside of the projects is neither in the backup nor written by a restore."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("a neighbour's secret")
    (projects / "run.sh").write_text("#!/bin/sh")
    (projects / "run.sh").chmod(0o4755)
    (projects / "notes").write_text("notes")
    (projects / ".git" / "refs" / "heads").mkdir(parents=True)
    targets: dict[str, Path | str] = {
        "a": outside,
        "file": outside / "secret",
        "inner": "./notes",
        "nowhere": "no\nthing",
        "up": "../..",
    }
    for name, target in targets.items():
        (projects / name).symlink_to(target)
    _, restored = back_up_and_restore(tmp_path, capsys)
    assert (restored / "run.sh").stat().st_mode & 0o7777 == 0o700
    assert (restored / "notes").stat().st_mode & 0o7777 == 0o600
    assert (restored / ".git" / "refs" / "heads").is_dir()
    links = {name: os.readlink(restored / name) for name in targets}  # noqa: PTH115 (it would change `./notes`)
    assert links == {name: str(target) for name, target in targets.items()}
    assert b"a neighbour's secret" not in (tmp_path / "all.tar").read_bytes()


def test_what_cannot_be_restored_is_left_out_by_name(
    projects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Sockets and pipes, and paths so long that another data directory could not hold them."""
    os.mkfifo(projects / "pipe\x1b[2J")
    with socket.socket(socket.AF_UNIX) as listening:
        (tmp_path / "s").symlink_to(projects)
        listening.bind(str(tmp_path / "s" / "socket"))
    (projects / "/".join("d" * backup.DEPTH_MAX)).mkdir(parents=True)
    (projects / ("long" * 50) / ("long" * 50)).mkdir(parents=True)
    monster = projects / "/".join(["long" * 50] * 12)
    monster.mkdir(parents=True)
    (projects / "kept").write_text("kept")
    printed, restored = back_up_and_restore(tmp_path, capsys)
    why = {PurePosixPath(one["name"]).parts[3]: one["why"] for one in printed["left_out"]}
    assert why.pop(r"pipe\x1b[2J") == why.pop("socket") == "not a file, directory or link"
    assert set(why.values()) == {"its path is too long"}
    assert why.keys() == {"d", "long" * 50}
    assert (restored / "kept").read_text() == "kept"
    for command in (["backup", str(tmp_path / "b.tar"), "--data", str(tmp_path / "data")], ["restore", "--check"]):
        more = [] if command[0] == "backup" else [str(tmp_path / "b.tar")]
        assert main([*command, *more]) == 0
        assert r"left out: projects/acme/shop/pipe\x1b[2J (not a file, directory or link)" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_of_a_project_that_cannot_be_read_is_left_out(
    projects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refuses: Refuses
) -> None:
    """It does not prevent the backup of the database and the log; a file of the log does."""
    (projects / "closed").touch(0)
    (projects / "shut").mkdir(0)
    (projects / "listed").mkdir()
    (projects / "listed" / "file").touch()
    (projects / "listed").chmod(0o400)
    printed, _ = back_up_and_restore(tmp_path, capsys)
    assert {one["name"]: one["why"] for one in printed["left_out"]} == {
        f"projects/acme/shop/{name}": "Permission denied" for name in ("closed", "listed", "shut")
    }
    (projects / "listed").chmod(0o700)
    (tmp_path / "data" / "nats" / "jetstream" / "0.blk").chmod(0)
    refuses("Permission denied", "backup", tmp_path / "other.tar", "--data", tmp_path / "data")


def test_a_link_in_the_log_is_refused(backup_path: Path, tmp_path: Path, refuses: Refuses) -> None:
    """The log itself is not a place for links: a backup with the link would not have the log."""
    (tmp_path / "data" / "nats" / "elsewhere").symlink_to(tmp_path)
    refuses("elsewhere is a link", "backup", tmp_path / "other.tar", "--data", tmp_path / "data")
    assert not (tmp_path / "other.tar").exists()


def test_a_folder_that_the_operator_has_moved_behind_a_link_is_in_the_backup(
    projects: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (projects / "notes").write_text("notes")
    (tmp_path / "data" / "projects").rename(tmp_path / "disk")
    (tmp_path / "data" / "projects").symlink_to(tmp_path / "disk")
    _, restored = back_up_and_restore(tmp_path, capsys)
    assert (restored / "notes").read_text() == "notes"
    assert not (tmp_path / "restored" / "projects").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_roots_backup_does_not_follow_a_folder_that_another_user_has_replaced_by_a_link(
    projects: Path, tmp_path: Path, refuses: Refuses
) -> None:
    (tmp_path / "data" / "projects").rename(tmp_path / "disk")
    (tmp_path / "data" / "projects").symlink_to(tmp_path / "disk")
    os.lchown(tmp_path / "data" / "projects", 65534, 65534)
    refuses("is a link of another user", "backup", tmp_path / "other.tar", "--data", tmp_path / "data")


def write_by_hand(path: Path, members: list[tuple[str, bytes, str]], **given: object) -> None:
    """Writes an archive that `backup` would not write."""
    manifest = {"format": backup.FORMAT, "tailrace": "0", "schema": 1, "made_at": ""} | given
    manifest["files"] = [
        {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "kind": kind}
        for name, content, kind in members
    ]
    with tarfile.open(path, "w") as tar:
        for name, content, _ in [*members, (backup.MANIFEST, msgspec.json.encode(manifest), "file")]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_a_restore_writes_nothing_through_a_link_or_outside_its_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    at = os.fsencode(outside)
    cases: list[list[tuple[str, bytes, str]]] = [
        [("a", at, "link"), ("a/b", b"text", "file")],
        [("a", at, "link"), ("a/b", b"target", "link")],
        [("a", at, "link"), ("a/b", b"", "directory")],
        [("a", at, "link"), ("a", b"text", "file")],
        [(r"\x2e\x2e/outside/b", b"text", "file")],
        [(r"..\x2foutside\x2fb", b"text", "file")],
        [(rf"\x2f{outside}/b", b"text", "file")],
        [(r"a\x00b", b"text", "file")],
        [("a", b"x\0y", "link")],
    ]
    file = tmp_path / "forged.tar"
    for members in cases:
        write_by_hand(file, members)
        assert main(["restore", str(file), "--data", str(tmp_path / "new")]) == 1, members
        is_found_by_check = "is not a file of a backup" in capsys.readouterr().err
        assert is_found_by_check == ("\\x" in members[0][0]), members
        assert not (tmp_path / "new").exists()
    assert not list(outside.iterdir())


def test_a_restore_that_fails_leaves_nothing(backup_path: Path, tmp_path: Path) -> None:
    """A full disk would stay full."""
    manifest = msgspec.structs.replace(backup.check(backup_path), files=[])
    with pytest.raises(UpRefused, match="cannot be restored"):
        backup.restore(backup_path, tmp_path / "new", manifest)
    assert names(tmp_path) == ["data", "saved.tar"]


@pytest.mark.parametrize("number", [SIGTERM, SIGHUP])
async def test_a_backup_that_is_terminated_leaves_nothing(backup_path: Path, tmp_path: Path, number: Signals) -> None:
    folder, target = backup_path.with_name("data"), tmp_path / "other.tar"
    (folder / "projects").mkdir()
    with (folder / "projects" / "large").open("wb") as large:
        large.truncate(1024**3)
    command = (sys.executable, "-m", "tailrace", "backup", str(target), "--data", str(folder))
    process = await asyncio.create_subprocess_exec(*command, cwd=CHECKOUT)
    await until(lambda: target.exists() and target.stat().st_size, 50)
    process.send_signal(number)
    assert await process.wait() == -number
    assert names(tmp_path) == ["data", "saved.tar"]


def test_a_backup_of_an_older_version_is_restored(tmp_path: Path) -> None:
    """In format 1, names are not escaped."""
    write_by_hand(tmp_path / "old.tar", [(r"projects/a\x41", b"text", "file")], format=1)
    assert main(["restore", str(tmp_path / "old.tar"), "--data", str(tmp_path / "new")]) == 0
    assert (tmp_path / "new" / "projects" / r"a\x41").read_bytes() == b"text"


def test_a_backup_with_too_long_a_manifest_is_not_written(
    backup_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    """It could not be restored."""
    monkeypatch.setattr(backup, "MANIFEST_BYTES_MAX", 100)
    refuses("too many for a backup", "backup", tmp_path / "other.tar", "--data", tmp_path / "data")
    assert not (tmp_path / "other.tar").exists()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("options", [(), ("--cluster",)], ids=["one nats-server", "a cluster"])
async def test_a_restored_up_has_its_turns_keys_and_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    """The turn is read from the log and from the database; the first key is needed at once and afterwards.

    A turn that was running at the stop, which only the log has, gets its whole answer.
    """
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with running(first, *LEAN, *options) as up:
        url = await up.ready()
        turn = httpx2.post(f"{url}/v1/turns", json={"message": "#sim words=5 rate=0", "user": "ann"}).json()
        events = httpx2.get(url + turn["links"]["events"]).content
        assert await asyncio.to_thread(main, ["keys", "create", "--tenant", "local", "--data", str(up.folder)]) == 0
        key = capsys.readouterr().out.split()[0]
        await until(lambda: httpx2.get(url + turn["links"]["self"]).status_code == 401)
        headers = {"authorization": f"Bearer {key}"}
        body = {"message": "#sim words=200 rate=20"}
        unfinished = httpx2.post(f"{url}/v1/turns", json=body, headers=headers).json()["links"]["events"]
        stop(up)
    capsys.readouterr()
    assert main(["backup", str(tmp_path / "all.tar"), "--json", "--data", str(first / "data")]) == 0
    assert main(["restore", str(tmp_path / "all.tar"), "--json", "--data", str(second / "data")]) == 0
    made, restored = map(json.loads, capsys.readouterr().out.splitlines())
    assert (made["files"], restored["data"]) == (restored["files"], str(second / "data"))
    with running(second, *LEAN, *options) as up, httpx2.Client(base_url=await up.ready()) as client:
        assert "Authorization: Bearer YOUR-KEY" in up.find_line("  curl ")
        assert client.get(turn["links"]["self"]).status_code == 401
        client.headers["authorization"] = f"Bearer {key}"
        # Each stream begins with another wait before a reconnect, and ids have an epoch after a restore.
        again = client.get(turn["links"]["events"]).content
        assert [(one.id or 0) % EPOCHS_AT for one in parse(again)] == [one.id for one in parse(events)]
        assert [one.data for one in parse(again)] == [one.data for one in parse(events)] != []
        (found,) = client.get("/v1/turns?user=ann").json()["data"]
        assert (found["turn"], found["outcome"]) == (turn["turn"], "completed")
        assert client.get(f"{unfinished}?dialect=text", timeout=60).text == words(200)


@pytest.mark.rule("R150")
@pytest.mark.timeout(300)
async def test_no_reader_shows_a_wrong_text_after_a_restore(tmp_path: Path) -> None:
    """Wherever it was cut: before the backup, or after it, when it has received what the restored log does not have."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    with running(first, *LEAN) as up:
        body = {"message": "#sim words=120 rate=10"}
        turn = httpx2.post(f"{await up.ready()}/v1/turns", json=body).json()["turn"]
        had = read_for(f"{await up.ready()}/v1/turns/{turn}/events", 2)
        stop(up)
    assert main(["backup", str(tmp_path / "all.tar"), "--data", str(first / "data")]) == 0
    with running(first, *LEAN) as up:
        events = f"{await up.ready()}/v1/turns/{turn}/events"
        had += read_for(events, 3, had[-1].id)
        stop(up)
    assert main(["restore", str(tmp_path / "all.tar"), "--data", str(second / "data")]) == 0
    with running(second, *LEAN) as up, httpx2.Client(base_url=await up.ready(), timeout=60) as client:
        whole = client.get(f"/v1/turns/{turn}/events").content
        assert displayed(whole) == words(120)
        ids, tail = [one.id or 0 for one in had], 0
        for number, event in enumerate(had, 1):
            rest = client.get(f"/v1/turns/{turn}/events", headers={"last-event-id": str(event.id)}).content
            assert displayed(b"".join(one.raw for one in had[:number]) + rest) == words(120), event
            if b'"type":"reset"' not in rest:
                tail = event.id or 0
        # Some were cut where the restored log has what they have received.
        assert ids[0] < tail < ids[-1]
        # The turn's ids are of the new epoch, so each resumes.
        for event in parse(whole)[::20]:
            rest = client.get(f"/v1/turns/{turn}/events", headers={"last-event-id": str(event.id)}).content
            assert b'"type":"reset"' not in rest
        for dialect, code in (("anthropic", 400), ("delta", 400), ("ui", 200), ("ag-ui", 200), ("html", 200)):
            sent = {"last-event-id": str(ids[-1]), "accept": "text/event-stream"}
            answer = client.get(f"/v1/turns/{turn}/events?dialect={dialect}", headers=sent)
            assert answer.status_code == code, dialect
            assert code == 400 or SAYS[dialect](answer.content) == words(120)
        count = client.get(f"/v1/responses/resp_{turn}?stream=true").text.count("data: ")
        counted = f"/v1/responses/resp_{turn}?stream=true&starting_after="
        assert [client.get(f"{counted}{seen}").status_code for seen in (3, count - 1)] == [200, 400]


def read_for(url: str, seconds: float, last: int | None = None) -> list[SseEvent]:
    """Returns the whole events of a stream that is cut after some seconds."""
    stream, found, until_s = EventStream(), list[SseEvent](), time.monotonic() + seconds
    headers = {} if last is None else {"last-event-id": str(last)}
    with httpx2.stream("GET", url, headers=headers) as answer:
        for piece in answer.iter_raw():
            found += stream.feed(piece)
            if time.monotonic() > until_s:
                break
    return found


def stop(up: Up) -> None:
    up.process.send_signal(signal.SIGTERM)
    up.process.wait()


def test_a_backup_remembers_that_a_key_has_existed(backup_path: Path, tmp_path: Path) -> None:
    """The keys may have been lost before the backup: then the restored system still requires one."""
    (backup_path.parent / "data" / data_dir.FIRST_KEY).write_text("a key has existed")
    backup.write(backup_path.parent / "data", tmp_path / "new.tar")
    backup.restore(tmp_path / "new.tar", tmp_path / "restored", backup.check(tmp_path / "new.tar"))
    assert (tmp_path / "restored" / data_dir.FIRST_KEY).read_text() == "a key has existed"


@pytest.mark.parametrize("files", [("data/tailrace.db", "new.db"), ("new.db", "data/tailrace.db")])
def test_a_migration_of_a_database_in_use_is_refused(
    backup_path: Path, tmp_path: Path, files: tuple[str, str], refuses: Refuses
) -> None:
    """Like a backup: persistence would record into the old database, or a copy would write beside persistence."""
    (tmp_path / "new.db").touch()
    with data_dir.lock(tmp_path / "data", "backup"):
        sentence = f"{tmp_path}/data is in use by `tailrace backup` (pid {os.getpid()}): stop it first"
        refuses(sentence, "migrate-database", *(tmp_path / file for file in files))
    assert (tmp_path / "new.db").stat().st_size == 0


def test_no_up_starts_with_a_database_that_is_migrated(
    backup_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held for the whole copy, once for a source and a target in the same data directory."""
    with data_dir.lock(tmp_path / "data", "up"):
        pass
    holders: list[str] = []

    async def copy(source: Database, target: Database) -> list[TableDigest]:
        holders.append(str(data_dir.find_holder(tmp_path / "data")))
        return await copy_database(source, target)

    monkeypatch.setattr("tailrace.deploy.cli.migrate_database.copy_database", copy)
    assert main(["migrate-database", *(str(tmp_path / "data" / name) for name in ("tailrace.db", "new.db"))]) == 0
    assert holders == [f"`tailrace migrate-database` (pid {os.getpid()})"]
