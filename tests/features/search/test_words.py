"""The words of the full text search: what their cache keeps in memory, and how much text is read for them."""

import tracemalloc

import pytest

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


def test_no_text_is_read_when_enough_words_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversation may have thousands of messages. Repeated words do not count, in any case."""
    monkeypatch.setattr("tailrace.features.search.words.WORDS_MAX", 4)
    texts = iter(["Light light", "LIGHT scatters Éa", "in_the air", "never read"])
    assert len(hash_words(TENANT, texts).split()) == 4
    assert list(texts) == ["never read"]
