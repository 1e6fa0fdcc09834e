"""Backup and restore of a data directory: a tar file whose last member is a manifest with checksums.

The manifest is last, so a file that was cut short has none. A restored directory appears under its name only when it is
whole. Every member of the archive is a regular file, and the manifest says what it becomes. The content of a link's
member is the link's target. The names in `projects` are chosen by models and users, so no name may prevent a backup.
"""

import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Literal

import msgspec

from tailrace.deploy.local import nats_cluster, nats_server
from tailrace.deploy.local.data_dir import FIRST_KEY, RESTORED, exists, find_holder
from tailrace.deploy.local.errors import UpRefused
from tailrace.persistence.migrations import NEWEST
from tailrace.persistence.sqlite import back_up
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import StoreError
from tailrace.proto.version import VERSION

# Since format 2, names are escaped, entries have a kind, and the manifest lists omitted paths.
FORMAT = 2
MANIFEST = "manifest.json"
DATABASE = "tailrace.db"
PROJECTS = "projects"
# The folders that an `up` cannot make again. `up` writes configuration, addresses and status at each start.
FOLDERS = (nats_server.STORE, nats_cluster.DIRECTORY, PROJECTS)
CHUNK_BYTES = 1024**2
# Enough for a few million files.
MANIFEST_BYTES_MAX = 1024**3
# Linux refuses a path of more than 4095 bytes. The rest is for the directory into which a backup is restored.
NAME_BYTES_MAX = 2048
# shutil.rmtree has a file descriptor open for each level, and a process may open 1024 by default.
DEPTH_MAX = 300

Kind = Literal["file", "executable", "directory", "link"]
# A line break in a name could forge a record of an archive's extended header, which is made of lines.
UNSAFE = re.compile(r"[\x00-\x1f\x7f]")
ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


class BackedUpFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file, directory or link. `name` is escaped since format 2."""

    name: str
    bytes: int
    sha256: str
    kind: Kind = "file"


class LeftOut(msgspec.Struct, frozen=True):
    """Something in a data directory that the backup does not contain, and why."""

    name: str
    why: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a backup, and the version that wrote it. A newer `format` or `schema` is refused."""

    format: int
    tailrace: str
    schema: int
    """The schema version of the database."""
    made_at: str
    files: list[BackedUpFile]
    left_out: list[LeftOut] = []

    @property
    def files_count(self) -> int:
        """The number of files, without directories and links."""
        return sum(entry.kind in ("file", "executable") for entry in self.files)


def require_state(data_dir: Path) -> None:
    """Raises UpRefused if there is no database of an `up` in the directory."""
    database = data_dir / DATABASE
    if not (exists(database) and database.is_file()):
        raise UpRefused(f"{data_dir} has no {DATABASE}: name the data directory of your `up` with --data")


def write(data_dir: Path, target: Path) -> Manifest:
    """Writes a backup of a locked data directory to a new file. Raises UpRefused, and then leaves no file."""
    try:
        # The database is copied to the folder of the backup, where there is room for the copy.
        with TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as beside, _private(target) as file:
            try:
                copy = Path(beside, DATABASE)
                schema = back_up(data_dir / DATABASE, copy)
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    files, left_out = _add_all(tar, data_dir, copy)
                    manifest = Manifest(
                        format=FORMAT,
                        tailrace=VERSION,
                        schema=schema,
                        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
                        files=files,
                        left_out=left_out,
                    )
                    _add_manifest(tar, manifest)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                target.unlink()
                raise
    except FileExistsError as error:
        raise UpRefused(f"{target} exists already: name another file") from error
    except (OSError, StoreError) as error:
        raise UpRefused(f"the backup {target} cannot be written: {error}") from error
    return manifest


def check(source: Path) -> Manifest:
    """Returns the manifest of a backup whose files are all whole. Raises UpRefused."""
    found: dict[str, tuple[int, str]] = {}
    encoded = b""
    try:
        with tarfile.open(source, mode="r:") as tar:
            for name, file in _members(tar):
                if name == MANIFEST:
                    encoded = file.read(MANIFEST_BYTES_MAX)
                else:
                    found[name] = _digest(file)
    except OSError as error:
        raise UpRefused(f"{source} cannot be read: {error.strerror}") from error
    except tarfile.TarError as error:
        raise UpRefused(f"{source} is not a whole backup ({error}): use another one") from error
    if not encoded:
        raise UpRefused(f"{source} is cut short: it has no manifest at its end. Use another backup")
    try:
        manifest = msgspec.json.decode(encoded, type=Manifest)
    except DECODE_ERRORS as error:
        raise UpRefused(f"{source}: the manifest cannot be read ({error}): use another backup") from error
    if manifest.format > FORMAT or manifest.schema > NEWEST:
        raise UpRefused(
            f"{source} was made by Tailrace {manifest.tailrace} with schema {manifest.schema} and format "
            f"{manifest.format}, and this version reads up to {NEWEST} and {FORMAT}: restore it with that version"
        )
    for wanted in manifest.files:
        if found.pop(wanted.name, None) != (wanted.bytes, wanted.sha256):
            raise UpRefused(f"{source}: {wanted.name} is missing or damaged: use another backup")
        if not _is_below(_path_of(wanted, manifest)):
            raise UpRefused(f"{source}: {wanted.name} is not a file of a backup: use another backup")
    if found:
        raise UpRefused(f"{source}: {min(found)} is not in the manifest: use another backup")
    return manifest


def restore(source: Path, data_dir: Path, manifest: Manifest) -> None:
    """Restores a checked backup into a directory that does not exist or is empty.

    Raises UpRefused, and then leaves nothing.
    """
    data_dir = data_dir.resolve()
    if holder := find_holder(data_dir):
        raise UpRefused(f"{data_dir} is in use by {holder}: stop it, or name another directory with --data")
    try:
        if data_dir.exists() and any(data_dir.iterdir()):
            raise UpRefused(f"{data_dir} is not empty: move it aside, or name another directory with --data")
        stage = data_dir.with_name(f"{data_dir.name}.restoring")
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700, parents=True)
        try:
            _extract(source, stage, manifest)
            (stage / RESTORED).touch()
            # Replaces an empty directory in one step.
            stage.rename(data_dir)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
    except (OSError, ValueError, tarfile.TarError) as error:
        raise UpRefused(f"{data_dir} cannot be restored: {error}") from error


def _extract(source: Path, stage: Path, manifest: Manifest) -> None:
    """Writes all entries of a checked backup below `stage`. Raises OSError, ValueError, TarError."""
    entries = {entry.name: entry for entry in manifest.files}
    links: list[tuple[Path, bytes]] = []
    with tarfile.open(source, mode="r:") as tar:
        for name, file in _members(tar):
            if name == MANIFEST:
                continue
            entry = entries.get(name)
            if entry is None:
                raise tarfile.TarError(f"{name!r} was not in the file when it was checked")
            path = stage / _path_of(entry, manifest)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if entry.kind == "directory":
                path.mkdir(mode=0o700, exist_ok=True)
            elif entry.kind == "link":
                links.append((path, file.read()))
            else:
                with _private(path, 0o700 if entry.kind == "executable" else 0o600) as copy:
                    shutil.copyfileobj(file, copy, CHUNK_BYTES)
                    copy.flush()
                    os.fsync(copy.fileno())
    # Links come last, so that nothing is written through a link.
    for path, target in links:
        path.symlink_to(os.fsdecode(target))


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the files of an archive. Raises TarError for anything that is not a file below the archive's root."""
    for member in tar:
        file = tar.extractfile(member) if member.isreg() else None
        if file is None or not _is_below(member.name):
            raise tarfile.TarError(f"{member.name!r} is not a file of a backup")
        yield member.name, file


def _is_below(name: str) -> bool:
    """Returns whether the path `name` stays below the directory to which it is relative."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _add_all(tar: tarfile.TarFile, data_dir: Path, database: Path) -> tuple[list[BackedUpFile], list[LeftOut]]:
    """Adds a copy of the database and all folders; returns what was added and left out. Raises OSError, UpRefused.

    In `projects`, unreadable files are left out. In other folders, they are an error.
    """
    files, left_out = [_add(tar, DATABASE, database, "file")], list[LeftOut]()
    if exists(data_dir / FIRST_KEY):
        files.append(_add(tar, FIRST_KEY, data_dir / FIRST_KEY, "file"))
    for name, kind in chain.from_iterable(_find(data_dir, folder, left_out) for folder in FOLDERS):
        try:
            files.append(_add_found(tar, data_dir, name, kind))
        except PermissionError as error:
            if not name.startswith(f"{PROJECTS}/"):
                raise
            left_out.append(_unreadable(name, error))
    return files, left_out


def _unreadable(name: str, error: OSError) -> LeftOut:
    return LeftOut(escape(name), error.strerror or "cannot be read")


def _find(data_dir: Path, folder: str, left_out: list[LeftOut]) -> Iterator[tuple[str, Kind]]:
    """Yields the parts of a folder that a backup contains, without following links. Adds the rest to `left_out`.

    Raises OSError, UpRefused.
    """
    root, is_strict = data_dir / folder, folder != PROJECTS
    if not os.path.lexists(root):
        return
    if root.is_symlink() and root.lstat().st_uid != os.geteuid():
        # With root's rights, the link would lead to files that its owner cannot read.
        raise UpRefused(f"{root} is a link of another user: write the backup as the user who owns it")
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        try:
            children = [(child.name, _kind(child)) for child in sorted((data_dir / parent).iterdir())]
        except OSError as error:
            if is_strict:
                raise
            left_out.append(_unreadable(parent, error))
            continue
        yield parent, "directory"
        for child, kind in children:
            name = f"{parent}/{child}"
            if len(os.fsencode(name)) > NAME_BYTES_MAX or name.count("/") > DEPTH_MAX:
                left_out.append(LeftOut(escape(name), "its path is too long"))
            elif kind is None:
                left_out.append(LeftOut(escape(name), "not a file, directory or link"))
            elif kind == "link" and is_strict:
                raise UpRefused(f"{data_dir / name} is a link, and a backup does not follow links: remove it")
            elif kind == "directory":
                waiting.append(name)
            else:
                yield name, kind


def _kind(path: Path) -> Kind | None:
    mode = path.lstat().st_mode
    if stat.S_ISREG(mode):
        return "executable" if mode & stat.S_IXUSR else "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else None


def _add_found(tar: tarfile.TarFile, data_dir: Path, name: str, kind: Kind) -> BackedUpFile:
    """Adds something that `_find` found. Raises OSError."""
    path = data_dir / name
    if kind == "directory":
        return _add_content(tar, name, b"", kind)
    if kind == "link":
        # Path.readlink would change `./a//b` to `a/b`.
        return _add_content(tar, name, os.fsencode(os.readlink(path)), kind)  # noqa: PTH115
    return _add(tar, name, path, kind)


def _add(tar: tarfile.TarFile, name: str, path: Path, kind: Kind) -> BackedUpFile:
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        size, hashed = _digest(file)
        file.seek(0)
        _add_member(tar, escape(name), size, file, 0o700 if kind == "executable" else 0o600)
    return BackedUpFile(escape(name), size, hashed, kind)


def _add_content(tar: tarfile.TarFile, name: str, content: bytes, kind: Kind) -> BackedUpFile:
    _add_member(tar, escape(name), len(content), io.BytesIO(content))
    return BackedUpFile(escape(name), *_digest(io.BytesIO(content)), kind)


def _add_manifest(tar: tarfile.TarFile, manifest: Manifest) -> None:
    """Raises UpRefused for a manifest that `check` would not read."""
    encoded = msgspec.json.encode(manifest)
    if len(encoded) > MANIFEST_BYTES_MAX:
        raise UpRefused(f"{len(manifest.files):,} files are too many for a backup: move some out of {PROJECTS}")
    _add_member(tar, MANIFEST, len(encoded), io.BytesIO(encoded))


def _add_member(tar: tarfile.TarFile, name: str, size: int, file: IO[bytes], mode: int = 0o600) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, mode
    tar.addfile(member, file)


def _digest(file: IO[bytes]) -> tuple[int, str]:
    """Returns the size and the SHA-256 of the rest of a file."""
    hashed, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        hashed.update(chunk)
        size += len(chunk)
    return size, hashed.hexdigest()


def escape(name: str) -> str:
    r"""Returns a path as printable UTF-8: a backslash, a control character and a byte that is not UTF-8 as `\xNN`."""
    text = os.fsencode(name).replace(b"\\", rb"\x5c").decode("utf-8", "backslashreplace")
    return UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def unescape(name: str) -> str:
    """Returns the path of which `escape` made `name`."""
    return os.fsdecode(ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), name.encode()))


def _path_of(entry: BackedUpFile, manifest: Manifest) -> str:
    return unescape(entry.name) if manifest.format > 1 else entry.name


def _private(path: Path, mode: int = 0o600) -> IO[bytes]:
    """Creates a file that only its owner may read. Raises FileExistsError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")
