"""The words of a turn, as the full text search stores them. Pure.

A stored word is a hash of the tenant and the word. So a search finds only words of its own tenant, and the indexes,
which keep parts of deleted rows for some time, contain only hashes.

A change of this module needs a new VERSION, here and in `outdated_words`, and a migration like 0017. Then persistence
stores the words of all turns again, also of those that an older version still records during an upgrade.
"""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

from tailrace.proto.entries import Message
from tailrace.proto.ids import Tenant
from tailrace.proto.records import TurnRecord

# The version of this module's rules, and the first word of each row of `searched`.
VERSION = "2"
WORDS_MAX = 10_000
HASH_BYTES = 5
# The cache has at most 20,000 words, which take about 6 MB. A longer word could have as many characters as a turn.
CACHED_CHARS_MAX = 32
# Chinese and Japanese are written without spaces: each of their characters is a word.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]|[^\W\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)
# An ASCII text in lower case, with spaces between its words: `WORD` takes six times as long.
ASCII_WORDS = {code: chr(code).lower() if chr(code).isalnum() or chr(code) == "_" else " " for code in range(128)}


def words_of(tenant: Tenant, turn: TurnRecord) -> str:
    """Returns `VERSION` and the hashed words of a turn's message and answer; '' without words.

    Long texts that are stored as blobs are left out.
    """
    words = hash_words(tenant, [*(text for message in turn.input for text in _texts(message)), turn.text])
    return f"{VERSION} {words}" if words else ""


def hash_words(tenant: Tenant, texts: Iterable[str]) -> str:
    """Returns the hashes of the different words of `texts`, at most `WORDS_MAX`, separated by spaces."""
    words: dict[str, None] = {}
    for text in texts:
        # A conversation may repeat few words a hundred thousand times: dicts find the different ones fast.
        words |= dict.fromkeys(_split(text))
        if len(words) >= WORDS_MAX:
            break
    found = islice(words, WORDS_MAX)
    hashed = ((_cached_hash if len(word) <= CACHED_CHARS_MAX else _hash)(tenant, word) for word in found)
    return " ".join(dict.fromkeys(hashed))


def _texts(message: Message) -> Iterable[str]:
    if isinstance(message.content, str):
        return [message.content]
    found = (block.get("text") for block in message.content if block.get("type") == "text")
    return [text for text in found if isinstance(text, str)]


def _split(text: str) -> list[str]:
    """Returns the words of `text`, in lower case, without accents, and with compatible characters replaced (NFKD)."""
    if text.isascii():
        return text.translate(ASCII_WORDS).split()
    # NFKD comes first, because it makes TM of ™, and again after `casefold`, which makes i and a dot of İ.
    split = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return WORD.findall("".join(one for one in split if not unicodedata.combining(one)))


def _hash(tenant: Tenant, word: str) -> str:
    given = f"{tenant}\0{word}".encode(errors="surrogatepass")
    return base64.b32encode(hashlib.blake2b(given, digest_size=HASH_BYTES).digest()).decode().lower()


_cached_hash = lru_cache(maxsize=20_000)(_hash)
