"""Simulated prompt cache: how many tokens of a request are read from the cache and written to it.

As in the API, a `cache_control` mark caches all blocks up to it, the longest cached prefix is read, and a prefix below
the minimum is not cached. Prefixes do not expire; the oldest prefix is dropped when there are too many.
"""

import hashlib
from collections.abc import Iterator
from typing import Any

import msgspec

TOKENS_MIN = 1024
MARK = b'"cache_control"'
KEPT_MAX = 10_000


class CachedTokens(msgspec.Struct, frozen=True):
    """Counts in tokens; a word counts as a token."""

    read: int = 0
    written: int = 0
    written_1h: int = 0
    """The part of `written` with a lifetime of an hour."""


class Cache:
    """The simulated prompt cache: the digests of at most KEPT_MAX prefixes, the least recently used first."""

    def __init__(self) -> None:
        self._kept: dict[str, None] = {}

    def take(self, body: bytes) -> CachedTokens:
        """Looks up the prefixes of `body`, and caches the marked ones."""
        if MARK not in body:
            return CachedTokens()
        digest, tokens = hashlib.sha256(), 0
        beginnings: list[tuple[str, int, str | None]] = []
        for block in blocks_of(msgspec.json.decode(body)):
            bare = {name: value for name, value in block.items() if name != "cache_control"}
            digest.update(msgspec.json.encode(bare, order="sorted"))
            tokens += len(str(block.get("text", "")).split())
            mark = block.get("cache_control")
            beginnings.append((digest.hexdigest(), tokens, None if mark is None else mark.get("ttl", "5m")))
        last = max((number for number, (*_, ttl) in enumerate(beginnings) if ttl is not None), default=-1)
        before = beginnings[: last + 1]
        read = max((tokens for name, tokens, _ in before if name in self._kept), default=0)
        kept = [(name, tokens, ttl) for name, tokens, ttl in before if ttl is not None and tokens >= TOKENS_MIN]
        for name, *_ in kept:
            self._kept.pop(name, None)
            self._kept[name] = None
        while len(self._kept) > KEPT_MAX:
            del self._kept[next(iter(self._kept))]
        written, written_1h = (
            max((tokens - read for _, tokens, ttl in kept if ttl in of), default=0) for of in (("5m", "1h"), ("1h",))
        )
        return CachedTokens(read, max(0, written), max(0, written_1h))


def blocks_of(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the blocks of a request in the order of the cache, each with its role."""
    for tool in request.get("tools") or ():
        yield {"tool": True, **tool}
    yield from as_blocks("", request.get("system") or [])
    for message in request.get("messages", ()):
        yield from as_blocks(message["role"], message.get("content") or [])


def as_blocks(role: str, content: str | list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        yield {"role": role, **block}
