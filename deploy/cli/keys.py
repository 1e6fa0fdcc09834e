"""`tailrace keys`: creates, lists and revokes API keys in NATS. Only a key's hash is stored, so it is shown once."""

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

from tailrace.deploy.local.banner import table
from tailrace.proto.api_key import OLD_SCOPES, ApiKey, NewKey, Scope, new_key
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, check
from tailrace.proto.nats.api_keys import ApiKeyStore
from tailrace.proto.nats.permissions import ADMIN

HEADINGS = ("ID", "TENANT", "SCOPES", "CREATED", "EXPIRES", "REVOKED", "NAME")


async def create(
    url: str,
    tenant: Tenant,
    name: str,
    scopes: Iterable[Scope],
    limits: dict[str, float] | None = None,
    life_s: int | None = None,
) -> tuple[NewKey, bool]:
    """Creates a key; returns it, and whether it is the first key. From the first key on, all requests need one.

    Without `life_s` it does not expire. Raises LogMisconfigured if the bucket is missing, LogUnavailable.
    """
    async with opened(url) as keys:
        is_first = not await keys.list_keys()
        now = int(time.time())
        expires_at = now + life_s if life_s is not None else None
        made = new_key(tenant, now=now, name=name, scopes=scopes, limits=limits, expires_at=expires_at)
        await keys.create(made.record)
        return made, is_first


async def list_all(url: str) -> list[ApiKey]:
    """Returns all keys, oldest first, including revoked ones."""
    async with opened(url) as keys:
        return sorted(await keys.list_keys(), key=lambda key: (key.created_at, key.id))


async def revoke(url: str, key_id: str) -> tuple[ApiKey, bool, bool] | None:
    """Revokes a key; returns it, whether it was revoked before, and whether no valid key is left.

    None if no key has this id.
    """
    async with opened(url) as keys:
        now = int(time.time())
        if (revoked := await keys.revoke(key_id, now)) is None:
            return None
        is_last = False
        # The key is revoked even if the others cannot be read.
        with suppress(LogUnavailable):
            is_last = not any(key.is_good(now) for key in await keys.list_keys())
        return *revoked, is_last


def render(keys: Sequence[ApiKey]) -> str:
    rows = [
        (
            *(key.id, key.tenant, ",".join(OLD_SCOPES.get(scope, scope) for scope in key.scopes)),
            *(day(key.created_at), day(key.expires_at), day(key.revoked_at)),
            key.name,
        )
        for key in keys
    ]
    return table([HEADINGS, *rows])


def day(time_s: int | None) -> str:
    return "-" if time_s is None else datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[ApiKeyStore]:
    connection = await Connection.open(url, "tailrace-keys", ADMIN)
    try:
        await check(connection)
        yield ApiKeyStore(connection)
    finally:
        await connection.close()
