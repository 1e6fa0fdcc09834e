"""Backup and restore of a data directory: a tar file whose last member is a manifest with checksums.

The manifest is last, so a file that was cut short has none. A restored directory appears under its name only when it
is whole.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

import msgspec

from tailrace.deploy.local import nats_cluster, nats_server
from tailrace.deploy.local.errors import UpRefused
from tailrace.persistence.migrations import NEWEST
from tailrace.persistence.sqlite import back_up
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import StoreError
from tailrace.proto.version import VERSION

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "tailrace.db"
# All that an `up` cannot make again. It writes its configuration, addresses and status at each start.
FOLDERS = (nats_server.STORE, nats_cluster.DIRECTORY, "projects")
CHUNK_BYTES = 1024**2
MANIFEST_BYTES_MAX = 64 * 1024**2


class BackedUpFile(msgspec.Struct, frozen=True):
    name: str
    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a backup, and the version that wrote it. A newer `format` or `schema` is refused."""

    format: int
    tailrace: str
    schema: int
    """The schema version of the database."""
    made_at: str
    files: list[BackedUpFile]


def require_state(data_dir: Path) -> None:
    """Raises UpRefused if there is no database of an `up` in the directory."""
    if not (data_dir / DATABASE).is_file():
        raise UpRefused(f"{data_dir} has no {DATABASE}: name the data directory of your `up` with --data")


def write(data_dir: Path, target: Path) -> Manifest:
    """Writes a backup of a locked data directory to a new file. Raises UpRefused; then no file is left."""
    try:
        # The copy of the database is beside the backup, where there is room for it.
        with TemporaryDirectory(prefix=f"{target.name}.", dir=target.parent) as beside, _private(target) as file:
            try:
                copy = Path(beside, DATABASE)
                schema = back_up(data_dir / DATABASE, copy)
                with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                    files = [_add(tar, DATABASE, copy)]
                    for folder in FOLDERS:
                        paths = sorted(path for path in (data_dir / folder).rglob("*") if path.is_file())
                        files += [_add(tar, str(path.relative_to(data_dir)), path) for path in paths]
                    made_at = datetime.now(UTC).isoformat(timespec="seconds")
                    manifest = Manifest(format=FORMAT, tailrace=VERSION, schema=schema, made_at=made_at, files=files)
                    encoded = msgspec.json.encode(manifest)
                    member = tarfile.TarInfo(MANIFEST)
                    member.size, member.mode = len(encoded), 0o600
                    tar.addfile(member, io.BytesIO(encoded))
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
    found: dict[str, BackedUpFile] = {}
    encoded = b""
    try:
        with tarfile.open(source, mode="r:") as tar:
            for name, file in _members(tar):
                if name == MANIFEST:
                    encoded = file.read(MANIFEST_BYTES_MAX)
                else:
                    found[name] = _digest(name, file)
    except (OSError, tarfile.TarError) as error:
        raise UpRefused(f"{source} is not a whole backup ({error}): use another one") from error
    if not encoded:
        raise UpRefused(f"{source} is cut short: it has no manifest at its end. Use another backup")
    try:
        manifest = msgspec.json.decode(encoded, type=Manifest)
    except DECODE_ERRORS as error:
        raise UpRefused(f"{source}: the manifest cannot be read ({error}): use another backup") from error
    if manifest.format > FORMAT or manifest.schema > NEWEST:
        raise UpRefused(
            f"{source} was made by Tailrace {manifest.tailrace} with schema {manifest.schema}, and this version reads "
            f"up to {NEWEST}: restore it with that version"
        )
    for wanted in manifest.files:
        if found.pop(wanted.name, None) != wanted:
            raise UpRefused(f"{source}: {wanted.name} is missing or damaged: use another backup")
    if found:
        raise UpRefused(f"{source}: {min(found)} is not in the manifest: use another backup")
    return manifest


def restore(source: Path, data_dir: Path) -> None:
    """Restores a checked backup into a directory that does not exist or is empty. Raises UpRefused."""
    data_dir = data_dir.resolve()
    try:
        if data_dir.exists() and any(data_dir.iterdir()):
            raise UpRefused(f"{data_dir} is not empty: move it aside, or name another directory with --data")
        stage = data_dir.with_name(f"{data_dir.name}.restoring")
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(mode=0o700, parents=True)
        with tarfile.open(source, mode="r:") as tar:
            for name, file in _members(tar):
                if name != MANIFEST:
                    path = stage / name
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    with _private(path) as copy:
                        shutil.copyfileobj(file, copy, CHUNK_BYTES)
                        copy.flush()
                        os.fsync(copy.fileno())
        # Replaces an empty directory in one step.
        stage.rename(data_dir)
    except (OSError, tarfile.TarError) as error:
        raise UpRefused(f"{data_dir} cannot be restored: {error}") from error


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields the files of an archive. Raises TarError for anything that is not a file below the archive's root."""
    for member in tar:
        path = PurePosixPath(member.name)
        file = tar.extractfile(member) if member.isreg() else None
        if file is None or path.is_absolute() or ".." in path.parts:
            raise tarfile.TarError(f"{member.name!r} is not a file of a backup")
        yield member.name, file


def _add(tar: tarfile.TarFile, name: str, path: Path) -> BackedUpFile:
    member = tarfile.TarInfo(name)
    member.size, member.mode = path.stat().st_size, 0o600
    with path.open("rb") as file:
        described = _digest(name, file)
        file.seek(0)
        tar.addfile(member, file)
    return described


def _digest(name: str, file: IO[bytes]) -> BackedUpFile:
    hashed, size = hashlib.sha256(), 0
    while chunk := file.read(CHUNK_BYTES):
        hashed.update(chunk)
        size += len(chunk)
    return BackedUpFile(name, size, hashed.hexdigest())


def _private(path: Path) -> IO[bytes]:
    """Creates a file that only its owner may read. Raises FileExistsError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
