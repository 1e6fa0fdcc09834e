"""The words of a turn, as the full text search stores them. Pure.

A stored word is a hash of the tenant and of the word. The indexes of both databases keep parts of what was deleted for
some time: these are hashes then, and a search reads only the words of its tenant.

A change of this module needs a migration that fills `unsearched` again.
"""

import base64
import hashlib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from tailrace.proto.entries import Message
from tailrace.proto.ids import Tenant
from tailrace.proto.records import TurnRecord

WORDS_MAX = 10_000
HASH_BYTES = 5
# Chinese and Japanese are written without spaces: each of their characters is a word.
WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]|[^\W\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]+"
)


def words_of(tenant: Tenant, turn: TurnRecord) -> str:
    """Returns the words of a turn's question and answer, the first `WORDS_MAX`. Long texts that are blobs have none."""
    return hash_words(tenant, [*(text for message in turn.input for text in _texts(message)), turn.text])


def hash_words(tenant: Tenant, texts: Iterable[str]) -> str:
    """Returns the different words of texts, hashed, with a space between two of them. '' without any word."""
    hashed: dict[str, None] = {}
    for text in texts:
        for word in WORD.findall(_folded(text)):
            if len(hashed) == WORDS_MAX:
                break
            hashed[_hash(tenant, word)] = None
    return " ".join(hashed)


def _texts(message: Message) -> Iterable[str]:
    if isinstance(message.content, str):
        return [message.content]
    found = (block.get("text") for block in message.content if block.get("type") == "text")
    return [text for text in found if isinstance(text, str)]


def _folded(text: str) -> str:
    """Returns a text without differences of case, accents and compatible characters."""
    if text.isascii():
        return text.lower()
    split = unicodedata.normalize("NFKD", text.casefold())
    return "".join(one for one in split if not unicodedata.combining(one))


@lru_cache(maxsize=20_000)
def _hash(tenant: Tenant, word: str) -> str:
    given = f"{tenant}\0{word}".encode(errors="surrogatepass")
    return base64.b32encode(hashlib.blake2b(given, digest_size=HASH_BYTES).digest()).decode().lower()
