"""The driver of `postgresql://` URLs. Its package, asyncpg, is optional."""

from tailrace.features.postgresql.url import FORM, SCHEMES, display
from tailrace.persistence.database import Database, Driver
from tailrace.persistence.feature import Feature, Parts
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.settings import NoSettings


async def _open(url: str, busy_timeout_s: float) -> Database:
    try:
        from tailrace.features.postgresql.database import PostgreSQL  # noqa: PLC0415  # an optional package
    except ImportError as error:
        raise SettingsInvalid(
            "TAILRACE_DATABASE names a PostgreSQL server, and asyncpg is not installed: "
            "pip install 'tailrace[postgres]'"
        ) from error
    return await PostgreSQL.open(url, busy_timeout_s=busy_timeout_s)


FEATURE = Feature(NoSettings, lambda _, __: Parts(), driver=Driver(SCHEMES, FORM, _open, display))
