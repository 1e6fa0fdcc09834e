"""The full text search in the database: `q` of ListTurns, and the words of each recorded turn."""

from functools import partial
from typing import Any

from tailrace.features.search.reader import SearchReader
from tailrace.features.search.words import hash_words, words_of
from tailrace.persistence.feature import Feature, Parts, Services
from tailrace.persistence.queries import Queries
from tailrace.persistence.run_every import run_beside, run_every
from tailrace.persistence.sql import read_queries
from tailrace.persistence.store import Store
from tailrace.persistence.tables import AddedRows, Tables
from tailrace.proto.errors import Refused
from tailrace.proto.fold import Turn
from tailrace.proto.ids import Tenant, TurnKey
from tailrace.proto.records import ListTurns, TurnPage, TurnRecord
from tailrace.proto.runtime.settings import NoSettings

# The most different words of a search.
WORDS_MAX = 50
UNSEARCHED_MAX = 200
# The interval of searches for turns without stored words: an older process may record some after the migration.
INDEX_OLDER_S = 60.0


class SearchQueries:
    """Answers ListTurns for one tenant at a time, also with a text to search for."""

    def __init__(self, store: Store, queries: Queries) -> None:
        self._queries = queries
        self._reader = SearchReader(store)

    async def turns(self, tenant: Tenant, query: ListTurns) -> TurnPage:
        """Returns a page of turns, newest first, which match all labels and words, and the outcome.

        Raises Refused for a search text without words, or with more than WORDS_MAX different ones, and like Queries.
        """
        if query.text is None:
            return await self._queries.turns(tenant, query)
        words = hash_words(tenant, [query.text]).split()
        if not words:
            raise Refused("request_invalid", "`q` contains no word: write one or more words to search for", param="q")
        if len(words) > WORDS_MAX:
            why = f"`q` has {len(words)} different words, and at most {WORDS_MAX} are allowed: search for fewer words"
            raise Refused("request_invalid", why, param="q")
        return await self._queries.page_of_turns(tenant, query, partial(self._reader.read_page, words=words))


async def store_older_words(store: Store) -> int:
    """Stores the words of some turns that another version has recorded; returns the number of turns.

    Raises StoreError.
    """
    left = await store.read("unsearched", limit=UNSEARCHED_MAX)
    outdated = await store.read("outdated_words", limit=UNSEARCHED_MAX)
    columns: list[dict[str, Any]] = []
    wordless: list[dict[str, Any]] = []
    for row in [*left, *outdated]:
        found = await store.turn(TurnKey(row["tenant"], row["turn"]))
        if found is not None and (words := words_of(row["tenant"], found)):
            columns.append({**row, "cursor": found.cursor, "words": words})
        else:
            wordless.append(row)
    async with store.write() as writer:
        await writer.executemany("delete_words", wordless)
        await writer.executemany("put_words", columns)
        await writer.executemany("forget_unsearched", left)
    return len(left) + len(outdated)


def _rows_of(key: TurnKey, _: Turn, record: TurnRecord) -> AddedRows:
    """Returns the words of a turn, together one row of `searched`."""
    words = words_of(key.tenant, record)
    return {"put_words": {"words": words}} if words else {}


def _start(services: Services, _: NoSettings) -> Parts:
    async def index_all() -> None:
        while await store_older_words(services.store):
            pass

    index_older = partial(run_every, INDEX_OLDER_S, index_all, "the search of older turns")
    queries = SearchQueries(services.store, services.queries)
    return Parts([(ListTurns, queries.turns)], [partial(run_beside, index_older)])


TABLES = Tables(read_queries(__package__), _rows_of, delete_turn=["delete_words"])
FEATURE = Feature(NoSettings, _start, TABLES)
