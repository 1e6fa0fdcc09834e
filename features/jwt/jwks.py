"""A cache of the public keys that verify JWTs (JWKS, RFC 7517), read from the URL or file of TAILRACE_JWT_KEYS.

The keys are read at the start, every ten minutes, and when a token names an unknown key. Anybody can send such a token,
so it causes a read at most every ten seconds. While the keys cannot be read, the known ones stay valid, and tokens with
other keys are refused with a 503: the issuer may have a new key, and after a 401 a client would log its user out.
docs/DEPENDENCIES.md says why this is not PyJWT's PyJWKClient.
"""

import asyncio
import math
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import urlsplit

import httpx2
import jwt
import msgspec
import structlog

from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused, SettingsInvalid

logger = structlog.get_logger()

REFRESH_INTERVAL_S = 600.0
COOLDOWN_S = 10.0
TIMEOUT_S = 5.0
BYTES_MAX = 256 * 1024
RSA_BITS_MIN = 2048
# RFC 7518, section 6. From private members, PyJWT would make a private key, with which RSA verifies nothing.
PUBLIC_MEMBERS = ("kty", "n", "e", "crv", "x", "y")


class VerificationKey(NamedTuple):
    """A key and the one algorithm that its type verifies; the `alg` of a token does not choose it."""

    algorithm: str
    key: Any
    """The bytes of a secret, or a public key of the cryptography package."""


class KeySet(msgspec.Struct, frozen=True):
    keys: list[dict[str, Any]]


class JwksCache:
    """The keys of one JWKS, found by `kid`."""

    ALGORITHMS: ClassVar[Mapping[str, str]] = {"RS256": "RSA", "ES256": "EC"}

    def __init__(self, source: str, *, cooldown_s: float = COOLDOWN_S) -> None:
        """`source` is a URL or a path. Raises SettingsInvalid if it is neither a URL nor a file.

        For `cooldown_s` after a read, an unknown `kid` causes no further read.
        """
        self._source = source
        self._cooldown_s = cooldown_s
        self._keys: dict[str | None, VerificationKey] = {}
        self._reading: asyncio.Task[None] | None = None
        self._read_at = -math.inf
        self._is_current = False
        """Whether the last read has succeeded."""
        is_url = _is_url(source)
        if not is_url and not Path(source).is_file():
            raise SettingsInvalid(f"TAILRACE_JWT_KEYS: {source} is neither an http(s) URL nor an existing file")
        # Made once, at the start: reading the system's certificates blocks the event loop.
        self._tls = httpx2.create_ssl_context() if is_url else None

    async def find(self, key_id: str | None) -> VerificationKey | None:
        """Returns the key with this `kid`; for None the key without one, or the only key. Reads the keys if needed.

        Raises Refused if the key is unknown, and the last read has failed, or no read has ended.
        """
        if key_id not in self._keys and time.monotonic() - self._read_at >= self._cooldown_s:
            await self.read()
        elif key_id not in self._keys and self._reading is not None:
            # A read is under way, and may bring this key.
            await asyncio.shield(self._reading)
        found = self._keys.get(key_id)
        if found is None and not self._is_current:
            message = "The keys that verify this token cannot be read at the moment; retry."
            raise Refused("jwt_keys_unavailable", message)
        return found

    async def refresh_periodically(self) -> None:
        """Reads the keys every ten minutes, which also drops withdrawn keys, until it is cancelled."""
        while True:
            await self.read()
            await asyncio.sleep(REFRESH_INTERVAL_S)

    async def read(self) -> None:
        """Reads the keys; concurrent calls share one read. If the read fails the known keys stay."""
        if self._reading is None:
            self._read_at = time.monotonic()
            self._reading = asyncio.create_task(self._read())
        # A waiter may be cancelled; the read goes on for the others.
        await asyncio.shield(self._reading)

    async def _read(self) -> None:
        try:
            if self._tls is None:
                text = await asyncio.to_thread(Path(self._source).read_bytes)
            else:
                text = await _fetch(self._source, self._tls)
            self._keys = parse(text)
            self._is_current = True
        except (OSError, httpx2.HTTPError, httpx2.InvalidURL, ImportError, *DECODE_ERRORS) as error:
            self._is_current = False
            # ImportError: the environment names a SOCKS proxy, for which httpx2 needs a further package.
            logger.warning(
                "cannot read the keys of TAILRACE_JWT_KEYS", error=type(error).__name__, known=len(self._keys)
            )
        finally:
            self._reading = None


def parse(text: bytes) -> dict[str | None, VerificationKey]:
    """Returns the usable keys of a JWKS by `kid`; under None the key without a `kid`, or the only key.

    Raises DECODE_ERRORS.
    """
    keys: dict[str | None, VerificationKey] = {}
    for jwk in msgspec.json.decode(text, type=KeySet).keys:
        key = _key(jwk)
        if key is not None:
            keys[str(jwk["kid"]) if "kid" in jwk else None] = key
    if len(keys) == 1:
        keys[None] = next(iter(keys.values()))
    return keys


def _key(jwk: Mapping[str, Any]) -> VerificationKey | None:
    """Returns a public key for RS256 or ES256; None for other types, such as published secrets (`oct`)."""
    algorithm = {"RSA": "RS256", "EC": "ES256"}.get(str(jwk.get("kty")))
    is_usable = jwk.get("use", "sig") == "sig" and jwk.get("alg", algorithm) == algorithm
    if algorithm is None or not is_usable or (algorithm == "ES256" and jwk.get("crv") != "P-256"):
        return None
    try:
        key = jwt.PyJWK({name: jwk[name] for name in PUBLIC_MEMBERS if name in jwk}, algorithm=algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return VerificationKey(algorithm, key) if algorithm == "ES256" or key.key_size >= RSA_BITS_MIN else None


def _is_url(source: str) -> bool:
    try:
        parts = urlsplit(source)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.hostname is not None


async def _fetch(url: str, tls: ssl.SSLContext) -> bytes:
    """Returns the body at `url`; follows no redirect, because only the settings name the address of the keys.

    Raises TimeoutError after TIMEOUT_S, httpx2.HTTPError, and ValueError above BYTES_MAX.
    """
    # Not compressed: a few bytes could become megabytes before they are counted.
    plain = {"accept-encoding": "identity"}
    async with (
        asyncio.timeout(TIMEOUT_S),
        httpx2.AsyncClient(verify=tls, timeout=None) as client,
        client.stream("GET", url, headers=plain) as response,
    ):
        response.raise_for_status()
        body = b""
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > BYTES_MAX:
                raise ValueError(f"the body has more than {BYTES_MAX} bytes")
        return body
