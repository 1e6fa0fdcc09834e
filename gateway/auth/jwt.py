"""Tokens of somebody else's login (JWT, RFC 7519), as Supabase, Auth0 or Keycloak sign them: a claim becomes a caller.

What a token says of how it is to be checked is never believed: a secret checks HS256, a public key what its own type
checks, and the keys are those of our settings alone. So `alg: none`, a public key taken for a secret, a `jku` of its
own are tokens like any other that nobody has signed (RFC 8725).
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
from starlette.requests import Request

from tailrace.gateway.auth.jwks import SigningKey, SigningKeys
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.settings import Settings
from tailrace.proto.api_key import SCOPES, scopes_of
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import Tenant, is_token

# Of clocks that differ (FAULTS F19).
LEEWAY_S = 30
REQUIRED = ["exp", "iss", "aud"]
# RFC 7518 section 3.2: a key as long as the hash. Of less a token tells enough to guess it by.
SECRET_BYTES_MIN = 32
# A large one has 4 kB, and is verified before anything is known of who sent it.
TOKEN_BYTES_MAX = 16 * 1024
TOKEN = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
# A number that a float still holds.
FOR_EVER = 2**53
# No tenant's own name begins so: what is a hash cannot be claimed.
MAPPED = "u_"
HEX_CHARS = 62
NAME_CHARS = 16


class Header(msgspec.Struct, frozen=True):
    """As much as finds the key. What it says is checked with that key, or not at all."""

    alg: str
    kid: str | None = None


class WebTokens:
    """Verifies tokens by what the settings tell: a secret, a set of public keys, or both."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsInvalid for half of what is needed."""
        self._secret = _secret(settings)
        self._keys = SigningKeys(settings.jwt_keys) if settings.jwt_keys else None
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._tenant_claim = settings.jwt_tenant_claim
        self._scopes_claim = settings.jwt_scopes_claim
        for name, value in (("TAILRACE_JWT_ISSUER", self._issuer), ("TAILRACE_JWT_AUDIENCE", self._audience)):
            if self and not value:
                raise SettingsInvalid(f"{name}: tokens are taken of one issuer and for one audience: say which")
            if value and not self:
                # The door would be thought to be closed, and is not.
                raise SettingsInvalid(
                    f"{name}: no token can be checked without TAILRACE_JWT_SECRET or TAILRACE_JWT_KEYS"
                )

    def __bool__(self) -> bool:
        """Whether any token is taken."""
        return self._secret is not None or self._keys is not None

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        header = _header(token)
        if header is None:
            return None
        key = self._secret if header.alg == "HS256" else None
        if self._keys is not None and header.alg in SigningKeys.ALGORITHMS:
            key = await self._keys.find(header.kid)
        claims = self._checked(token, key) if key is not None else None
        return self._caller(claims) if claims is not None else None

    async def keep_up(self) -> None:
        """Keeps the public keys up, where there are any; until it is cancelled."""
        if self._keys is not None:
            await self._keys.keep_up()

    def _checked(self, token: bytes, key: SigningKey) -> Mapping[str, Any] | None:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key=key.key,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self._issuer,
                leeway=LEEWAY_S,
                options={"require": REQUIRED},
            )
        # A claim of the wrong type is none of PyJWT's own errors everywhere, nor is JSON that nests too deep.
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            return None
        return claims

    def _caller(self, claims: Mapping[str, Any]) -> Principal | None:
        whose = claims.get(self._tenant_claim)
        if not isinstance(whose, str | int) or isinstance(whose, bool) or whose == "":
            return None
        subject = str(claims.get("sub", ""))
        return Principal(
            tenant_named(str(whose)),
            key=f"jwt_{hashlib.sha256(subject.encode(errors='replace')).hexdigest()[:NAME_CHARS]}",
            scopes=scopes_of(scopes_in(claims.get(self._scopes_claim))) if self._scopes_claim else SCOPES,
            until=float(min(int(claims["exp"]) + LEEWAY_S, FOR_EVER)),
        )


def tenant_named(whose: str) -> Tenant:
    """The tenant of a claim's value: itself where it can be part of a subject, else a hash. No two are the same."""
    if is_token(whose) and not whose.startswith(MAPPED):
        return Tenant(whose)
    sha256 = hashlib.sha256(whose.encode(errors="surrogatepass")).hexdigest()
    return Tenant(f"{MAPPED}{sha256[:HEX_CHARS]}")


def scopes_in(claim: object) -> set[str]:
    """`read ask`, as OAuth has it (RFC 6749 section 3.3), or a list."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return {word for word in words if isinstance(word, str)}


def _header(token: bytes) -> Header | None:
    if len(token) > TOKEN_BYTES_MAX or TOKEN.fullmatch(token) is None:
        return None
    encoded = token.partition(b".")[0]
    try:
        return msgspec.json.decode(base64.urlsafe_b64decode(encoded + b"=" * (-len(encoded) % 4)), type=Header)
    except DECODE_ERRORS:
        return None


def _secret(settings: Settings) -> SigningKey | None:
    if not settings.jwt_secret:
        return None
    secret = settings.jwt_secret.encode()
    if len(secret) < SECRET_BYTES_MIN:
        raise SettingsInvalid(f"TAILRACE_JWT_SECRET: it is shorter than {SECRET_BYTES_MIN} bytes, and could be guessed")
    try:
        jwt.encode({}, secret, algorithm="HS256")
    except jwt.PyJWTError as error:
        # Who has a public key would have the secret.
        raise SettingsInvalid("TAILRACE_JWT_SECRET: that is a public key: it belongs into TAILRACE_JWT_KEYS") from error
    return SigningKey("HS256", secret)
