"""Whether a missing log may be created: the stream TURNS may also be in another account or domain, or on a volume that
is not mounted."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tailrace.persistence.health import PersistenceHealth
from tailrace.proto.errors import LogIncomplete, TailraceError
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.streams import COPY_FIRST, LOG_ELSEWHERE, LOG_MISSING
from tailrace.proto.subjects import PERSISTENCE, STREAM

PERSISTENCE_WAIT_S = 0.5
DATABASE_WAIT_S = 2.0


class LogUnseen(LogIncomplete):
    """NATS has no log, and there may be one that cannot be seen from here. Nothing was created."""


class Evidence(NamedTuple):
    """The answer of one source about a log that NATS does not have."""

    has_recorded: bool | None
    """Whether there was a log; None if the source cannot be asked."""
    detail: str
    """A clause for the operator."""


Source = Callable[[], Awaitable[Evidence]]


def find_objection(sources: Sequence[Evidence]) -> str:
    """Returns why no new log may be created, as a clause; empty if it may."""
    if recorded := [one.detail for one in sources if one.has_recorded]:
        return " and ".join(recorded)
    if all(one.has_recorded is None for one in sources):
        return f"whether there was one is unknown ({', '.join(one.detail for one in sources)})"
    return ""


def refusal(objection: str) -> str:
    return (
        f"{LOG_MISSING}, and {objection}. {LOG_ELSEWHERE}. Nothing was created: {COPY_FIRST}; only in a first "
        "installation, or if the log is lost, add --new"
    )


async def require_new(connection: Connection, *others: Source) -> None:
    """Raises LogUnseen unless persistence or one of `others` says that there was no log, and none that there was one.

    Raises LogUnavailable.
    """
    sources = [await ask_persistence(connection), *[await ask() for ask in others]]
    if objection := find_objection(sources):
        raise LogUnseen(refusal(objection))


async def ask_persistence(connection: Connection) -> Evidence:
    """Asks all processes of persistence over NATS. Raises LogUnavailable."""
    reports = await Rpc(connection).every_health(PERSISTENCE, wait_s=PERSISTENCE_WAIT_S)
    found = [msgspec.json.decode(report, type=PersistenceHealth) for report in reports]
    for one in found:
        if one.has_recorded:
            return Evidence(True, f"persistence has recorded turns in {one.database}")
    if any(one.has_recorded is False for one in found):
        return Evidence(False, "persistence has recorded nothing")
    return Evidence(None, "persistence does not say" if found else "persistence does not answer")


async def ask_database(where: str | None, *, if_absent: bool | None = None) -> Evidence:
    """Asks a database: the path of a SQLite file, a URL, or None if TAILRACE_DATABASE is not set.

    `if_absent` is the answer for a file that does not exist: it may be on another machine, or on a volume that is not
    mounted.
    """
    if not where:
        return Evidence(None, "TAILRACE_DATABASE is not set")
    # Loading the drivers takes longer than the rest of the command, and only a missing log needs them.
    from tailrace.features.persistence import DATABASES, TABLES  # noqa: PLC0415
    from tailrace.persistence.store import Store  # noqa: PLC0415

    name = f"the database {DATABASES.display(where)}"
    try:
        if not DATABASES.is_url(where) and not await asyncio.to_thread(Path(where).exists):
            return Evidence(if_absent, f"{name} does not exist here")
        store = Store(await DATABASES.open(where, busy_timeout_s=DATABASE_WAIT_S), TABLES)
        try:
            has_recorded = await store.has_recorded()
        finally:
            await store.close()
    except (TailraceError, PermissionError) as error:
        return Evidence(None, f"{name} cannot be asked: {error}")
    return Evidence(has_recorded, f"{name} has recorded {'turns' if has_recorded else 'nothing'}")


async def ask_stores(stores: Sequence[Path]) -> Evidence:
    """Looks for files of the log in the stores of this machine's nats-servers, which do not show it."""

    def find() -> Path | None:
        return next((path for store in stores for path in store.rglob(f"streams/{STREAM}")), None)

    if (found := await asyncio.to_thread(find)) is not None:
        return Evidence(True, f"{found} has files of one")
    # Another store may have it.
    return Evidence(None, "the store of nats-server has none")
