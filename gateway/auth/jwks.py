"""The public keys of whoever signs tokens (JWKS, RFC 7517): read from one URL or file of the settings, and kept.

They are read at the start, every ten minutes, and when a token names a key that is not among them, which anybody can
make one do: so that not more often than every ten seconds. While they cannot be read those that are known stay true.
"""

import asyncio
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import jwt
import msgspec
import structlog

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid

logger = structlog.get_logger()

READ_EVERY_S = 600.0
READ_AGAIN_S = 10.0
TIMEOUT_S = 5.0
BYTES_MAX = 256 * 1024
PIECE_BYTES = 16 * 1024
RSA_BITS_MIN = 2048


class SigningKey(NamedTuple):
    """`algorithm` is the one that a key of its type checks, whatever a token says."""

    algorithm: str
    key: Any
    """A secret's bytes, or what the cryptography package has made of a public key."""


class KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class SigningKeys:
    ALGORITHMS: ClassVar[Mapping[str, str]] = {"RS256": "RSA", "ES256": "EC"}

    def __init__(self, source: str, *, again_s: float = READ_AGAIN_S) -> None:
        """`source` is a URL or a path; raises SettingsInvalid when it is a file that is not there.

        `again_s`: for so long after a reading a name that is not known causes no other.
        """
        self._source = source
        self._again_s = again_s
        self._keys: dict[str | None, SigningKey] = {}
        self._reading: asyncio.Task[None] | None = None
        self._read_at = -math.inf
        if not _is_url(source) and not Path(source).is_file():
            raise SettingsInvalid("TAILRACE_JWT_KEYS: that is no http(s) URL, and no file")

    async def find(self, key_id: str | None) -> SigningKey | None:
        """The key of that name; without one, the only key there is."""
        if key_id not in self._keys and time.monotonic() - self._read_at >= self._again_s:
            await self.read()
        elif key_id not in self._keys and self._reading is not None:
            # It is just being read: the key may be among them.
            await asyncio.shield(self._reading)
        return self._keys.get(key_id)

    async def keep_up(self) -> None:
        """Reads the keys now and then, so that one that was withdrawn is forgotten; until it is cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(READ_EVERY_S)

    async def read(self) -> None:
        """Reads the keys; whoever asks meanwhile waits for the same answer. What cannot be read changes nothing."""
        if self._reading is None:
            self._read_at = time.monotonic()
            self._reading = asyncio.create_task(self._read())
        # Who waits may go away, and the others still get it.
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        try:
            text = await asyncio.to_thread(_fetch if _is_url(self._source) else _load, self._source)
            self._keys = parse(text)
        except (OSError, HTTPException, *DECODE_ERRORS) as error:
            logger.warning("signing keys cannot be read", error=type(error).__name__, known=len(self._keys))
        finally:
            self._reading = None


def parse(text: bytes) -> dict[str | None, SigningKey]:
    """The keys of a JWKS that can check a signature, by name; under None the only one. Raises DECODE_ERRORS."""
    keys: dict[str | None, SigningKey] = {}
    for told in msgspec.json.decode(text, type=KeySet).keys:
        key = _key(told)
        if key is not None:
            keys[str(told["kid"]) if "kid" in told else None] = key
    if len(keys) == 1:
        keys[None] = next(iter(keys.values()))
    return keys


def _key(told: Mapping[str, Any]) -> SigningKey | None:
    """A public key for signatures, of a type that we take. A secret (`oct`) that somebody has published is none."""
    algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(told.get("kty")))
    is_ours = told.get("use", "sig") == "sig" and told.get("alg", algorithm) == algorithm
    if algorithm is None or not is_ours or (algorithm == "ES256" and told.get("crv") != "P-256"):
        return None
    try:
        key = jwt.PyJWK(dict(told), algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return SigningKey(algorithm, key) if algorithm == "ES256" or key.key_size >= RSA_BITS_MIN else None


def _is_url(source: str) -> bool:
    try:
        parts = urlsplit(source)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.hostname is not None


def _load(path: str) -> bytes:
    return Path(path).read_bytes()


class _Straight(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """The settings say where the keys are; who answers there does not."""


# Without what urllib opens besides: files, FTP, data.
_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler(),
    urllib.request.HTTPHandler(),
    urllib.request.HTTPSHandler(),
    urllib.request.HTTPDefaultErrorHandler(),
    urllib.request.HTTPErrorProcessor(),
    _Straight(),
):
    _OPENER.add_handler(_handler)


def _fetch(url: str) -> bytes:
    """The body at `url`, in a thread. Raises OSError, HTTPException, and ValueError for one that is too long."""
    over_at = time.monotonic() + TIMEOUT_S
    body = b""
    with _OPENER.open(url, timeout=TIMEOUT_S) as answer:
        # Piece by piece: the time-out above is that of each, and one byte could come in every second.
        while piece := answer.read1(PIECE_BYTES):
            body += piece
            if len(body) > BYTES_MAX:
                raise ValueError("too long")
            if time.monotonic() > over_at:
                raise TimeoutError
    return body
