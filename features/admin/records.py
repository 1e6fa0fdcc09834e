"""The query about the use of API keys that persistence answers."""

from datetime import date, datetime
from typing import ClassVar

import msgspec

from tailrace.proto.ids import Tenant
from tailrace.proto.records import Query


class KeyUse(msgspec.Struct, frozen=True):
    """The use of an API key that has made a turn."""

    last_used: datetime
    """When the last of its turns started."""
    cost_usd: float
    """The cost of its turns from the day of the query on."""


class KeyUses(msgspec.Struct, frozen=True):
    """The use of API keys by their ids, without those that have made no turn."""

    uses: dict[str, KeyUse]


class ListKeyUse(Query[KeyUses], frozen=True):
    """The use of API keys; for operators. It does not wait until the turns of all tenants are recorded."""

    query: ClassVar[str] = "key_use"
    keys: list[tuple[Tenant, str]]
    """The tenant and the id of each key."""
    first: date
    """The first day (UTC) of the cost."""
