"""Verification of JWTs (RFC 7519) of an external login, such as Supabase, Auth0 or Keycloak.

A claim names the tenant. The settings alone decide the keys, and each key's type decides its algorithm: a secret
verifies HS256, an RSA key RS256, a P-256 key ES256. `alg`, `jku`, `jwk` and `x5u` of a token are not believed, so
`alg: none` and HS256 with a public key fail like any wrong signature (RFC 8725).
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
import structlog
from starlette.requests import Request

from tailrace.features.jwt.jwks import JwksCache, VerificationKey
from tailrace.features.jwt.settings import Settings
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.duplicate_keys import require_unique_keys
from tailrace.gateway.http.scope import ADMIN_SCOPE, TENANT_SCOPES, ScopeName, scopes_of
from tailrace.proto.decoding import DECODE_ERRORS
from tailrace.proto.errors import Refused, SettingsInvalid
from tailrace.proto.ids import Tenant, is_token, is_user
from tailrace.proto.ownership import WHOLE, Scope, name_token
from tailrace.proto.runtime import base64url

logger = structlog.get_logger()

# Clocks differ (FAULTS F19).
LEEWAY_S = 30
REQUIRED = ["exp", "iss", "aud"]
# RFC 7519, section 2: a NumericDate is a number. PyJWT also takes text of digits.
DATES = ("exp", "nbf", "iat")
# RFC 7518, section 3.2: as long as the hash. A shorter secret can be guessed from a token.
SECRET_BYTES_MIN = 32
# A large token has 4 kB. The limit bounds the work for a sender that is not authenticated yet.
TOKEN_BYTES_MAX = 16 * 1024
TOKEN = re.compile(rb"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
# The largest power of two up to which a float holds every whole number.
UNTIL_MAX = 2**53
# Prefix of hashed names. A claim that begins with it is hashed too, so no claim can equal the hash of another.
HASH_PREFIX = "u_"
HASH_CHARS = 62


class Header(msgspec.Struct, frozen=True):
    """The fields of a JWT's header that select the key."""

    alg: str
    kid: str | None = None


class JwtVerifier:
    """Verifies JWTs with a secret, a set of public keys, or both."""

    def __init__(self, settings: Settings) -> None:
        """Raises SettingsInvalid if the settings are incomplete or the secret is too short."""
        self._secret = _secret(settings)
        self._keys = JwksCache(settings.jwt_keys) if settings.jwt_keys else None
        self._issuer = settings.jwt_issuer
        self._audience = settings.jwt_audience
        self._tenant_claim = settings.jwt_tenant_claim
        self._scopes_claim = settings.jwt_scopes_claim
        self._user_claim = settings.jwt_user_claim
        for name, value in (("TAILRACE_JWT_ISSUER", self._issuer), ("TAILRACE_JWT_AUDIENCE", self._audience)):
            if self and not value:
                raise SettingsInvalid(f"{name} is not set: set the issuer and the audience of your tokens")
            if value and not self:
                # The operator expects that a token is needed, and none would be.
                raise SettingsInvalid(
                    f"{name}: no key verifies tokens; set TAILRACE_JWT_SECRET or TAILRACE_JWT_KEYS too"
                )

    def __bool__(self) -> bool:
        """Returns whether JWTs are accepted."""
        return self._secret is not None or self._keys is not None

    async def verify(self, token: bytes, _: Request) -> Principal | None:
        """Returns the principal of a valid JWT, or None. Raises Refused if its public key cannot be read."""
        header = _header(token)
        if header is None:
            return None
        key = self._secret if header.alg == "HS256" else None
        if self._keys is not None and header.alg in JwksCache.ALGORITHMS:
            key = await self._keys.find(header.kid)
        if key is None:
            # For the operator: the client does not learn what is wrong with its credential.
            logger.debug("JWT refused", why=f"no key for the algorithm {header.alg!r:.40} and kid {header.kid!r:.80}")
            return None
        claims = self._claims(token, key)
        return self._principal(claims) if claims is not None else None

    async def refresh_periodically(self) -> None:
        """Refreshes the public keys, if there are any, until it is cancelled."""
        if self._keys is not None:
            await self._keys.refresh_periodically()

    def _claims(self, token: bytes, key: VerificationKey) -> Mapping[str, Any] | None:
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
            for part in token.split(b".")[:2]:
                # PyJWT takes the last of several members with one name, another parser the first.
                require_unique_keys(base64url.decode(part))
        # PyJWT lets other errors through for claims of a wrong type and for JSON that nests too deep.
        except (jwt.PyJWTError, Refused, ValueError, TypeError, OverflowError, RecursionError) as error:
            logger.debug("JWT refused", why=str(error) or type(error).__name__)
            return None
        wrong = [name for name in DATES if type(claims.get(name, 0)) not in (int, float)]
        if wrong:
            logger.debug("JWT refused", why=f"the claim {wrong[0]!r} is no number")
            return None
        return claims

    def _principal(self, claims: Mapping[str, Any]) -> Principal | None:
        owner = claims.get(self._tenant_claim)
        if not isinstance(owner, str | int) or isinstance(owner, bool) or owner == "":
            logger.debug("JWT refused", why=f"the claim {self._tenant_claim!r} names no tenant")
            return None
        user = claims.get(self._user_claim) if self._user_claim else None
        if user is not None and (not isinstance(user, str | int) or isinstance(user, bool) or not is_user(str(user))):
            # If no user came from the JWT, the body could name any user.
            logger.debug("JWT refused", why=f"the claim {self._user_claim!r} names no user")
            return None
        subject = str(claims.get("sub", ""))
        return Principal(
            Scope(tenant_of_claim(str(owner)), WHOLE),
            key=name_token(subject),
            scopes=_parse_scopes(claims.get(self._scopes_claim)) if self._scopes_claim else TENANT_SCOPES,
            until=float(min(int(claims["exp"]) + LEEWAY_S, UNTIL_MAX)),
            user=None if user is None else str(user),
            must_name_user=True,
        )


def tenant_of_claim(value: str) -> Tenant:
    """Returns the value of a claim as a tenant: the value itself if it is a valid tenant name, else its hash.

    Two different values never give the same tenant.
    """
    if is_token(value) and not value.startswith(HASH_PREFIX):
        return Tenant(value)
    sha256 = hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()
    return Tenant(f"{HASH_PREFIX}{sha256[:HASH_CHARS]}")


def _parse_scopes(claim: object) -> frozenset[ScopeName]:
    """Returns the scopes that a claim grants. Never `admin`: logins use that word for rights in their own app."""
    return scopes_of(scopes_in(claim)) - {ADMIN_SCOPE}


def scopes_in(claim: object) -> set[str]:
    """Returns the scope names in a claim: words of a string (RFC 6749, section 3.3), or a list."""
    words = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return {word for word in words if isinstance(word, str)}


def _header(token: bytes) -> Header | None:
    if len(token) > TOKEN_BYTES_MAX or TOKEN.fullmatch(token) is None:
        return None
    encoded = token.partition(b".")[0]
    try:
        return msgspec.json.decode(base64url.decode(encoded), type=Header)
    except DECODE_ERRORS:
        return None


def _secret(settings: Settings) -> VerificationKey | None:
    if not settings.jwt_secret:
        return None
    secret = settings.jwt_secret.encode()
    if len(secret) < SECRET_BYTES_MIN:
        raise SettingsInvalid(
            f"TAILRACE_JWT_SECRET: {len(secret)} bytes could be guessed; use at least {SECRET_BYTES_MIN} bytes"
        )
    try:
        jwt.encode({}, secret, algorithm="HS256")
    except jwt.PyJWTError as error:
        # A public key is known to other parties, so anybody could sign tokens with it.
        raise SettingsInvalid("TAILRACE_JWT_SECRET: this is a public key; set TAILRACE_JWT_KEYS instead") from error
    return VerificationKey("HS256", secret)
