"""The use of API keys, from the totals of their turns."""

import msgspec

from tailrace.features.admin.records import KeyUse, KeyUses, ListKeyUse
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.rows import EPOCH, moment
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import Store
from tailrace.persistence.tables import Tables
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.settings import NoSettings
from tailrace.proto.usage import NANO_USD_PER_USD


class KeyQueries:
    """Answers the queries about keys. Each raises StoreError."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def use(self, _: Tenant, query: ListKeyUse) -> KeyUses:
        """Returns the use of the keys that have made a turn, by their ids."""
        listed = msgspec.json.encode(query.keys).decode()
        rows = await self._store.read("key_use", listed=listed, first=(query.first - EPOCH.date()).days)
        uses = {
            row["key"]: KeyUse(moment(row["last_used_at"]), int(row["cost_nusd"]) / NANO_USD_PER_USD) for row in rows
        }
        return KeyUses(uses)


def _start(services: Services, _: NoSettings) -> Parts:
    return Parts([(ListKeyUse, KeyQueries(services.store).use)])


FEATURE = Feature(NoSettings, _start, Tables(read_queries(__package__)))
