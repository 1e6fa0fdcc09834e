"""The words of the full text search: what their cache keeps in memory."""

import tracemalloc

from tailrace.features.search.words import hash_words
from tailrace.proto.ids import Tenant

TENANT = Tenant("ours")
WORD_CHARS = 10_000


def test_long_words_do_not_stay_in_memory() -> None:
    """The words of 100 turns, of one long word each, take less memory than ten such words."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(100):
            assert hash_words(TENANT, [f"{number:0>{WORD_CHARS}}"])
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 10 * WORD_CHARS
