"""Authentication of requests: finds the credential of a request and verifies it.

A credential source reads credentials from one part of a request (headers, query, cookie) and names the verifiers that
accept what it reads. A new kind of credential is a new verifier or a new source; all checks after that are shared. The
principal comes from the credential alone, never from a body or a path.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import structlog
from starlette.requests import Request

from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.cors import is_cross_origin_simple_post, parse_origins
from tailrace.gateway.auth.principal import NoKey, Principal
from tailrace.gateway.auth.static_keys import StaticKeys
from tailrace.gateway.http.scope import ADMIN_SCOPE, SCOPES
from tailrace.gateway.settings import Settings
from tailrace.proto import ids, subjects
from tailrace.proto.errors import CredentialMissing, Refused
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.runtime.flag import Flag
from tailrace.proto.runtime.ip_address import is_loopback

logger = structlog.get_logger()

# The principal of every request where no credential is needed.
# Without `admin`: the first key closes the gateway to clients without a key, so only the command line creates it.
LOCAL = Principal(Scope(ids.LOCAL, WHOLE), scopes=SCOPES - {ADMIN_SCOPE})
CROSS_ORIGIN_MESSAGE = (
    "A page of another origin may not send this request. Send `Content-Type: application/json`, or call from a server, "
    "or add the page's origin to TAILRACE_ORIGINS."
)
# An SDK that has a token and a key in its environment sends both.
CREDENTIAL_HEADERS = ("authorization", "x-api-key")
TWO_HEADERS_MESSAGE = (
    "The request has two credentials, in the headers `Authorization` and `x-api-key`: send one of them."
)


class Verifier(Protocol):
    """Verifies one kind of credential."""

    async def verify(self, token: bytes, request: Request) -> Principal | None:
        """Returns the principal of `token`; None if the token is of another kind, or is not valid.

        Raises LogUnavailable or Refused if it cannot decide. `request` is for credentials that are valid for some
        requests only.
        """


class CredentialSource(NamedTuple):
    """Reads the credentials in one part of a request, and names the verifiers that accept them."""

    read: Callable[[Request], list[bytes]]
    verifiers: Sequence[Verifier]


class Authenticator:
    """Returns the principal of a request. Where no credential is needed, every request is the tenant `local`."""

    def __init__(self, settings: Settings, api_keys: ApiKeyCache, verifiers: Sequence[Verifier] = ()) -> None:
        """`verifiers` accept further credentials in the headers; with any verifier, no request is anonymous.

        Raises SettingsInvalid if keys in the settings are not valid.
        """
        self._host = settings.host
        self._static_keys = StaticKeys(settings.api_keys)
        self.api_keys = api_keys
        self.verifiers = verifiers
        self._has_credentials = bool(self._static_keys or verifiers)
        self._allowed = settings.allow_anonymous
        is_anonymous_allowed = is_loopback(settings.host) if self._allowed == "loopback" else self._allowed
        self._is_open_without_keys = is_anonymous_allowed and not self._has_credentials
        self._origins = parse_origins(settings.origins)
        self.sources: list[CredentialSource] = [
            CredentialSource(_read_headers, [self._static_keys, self.api_keys, *verifiers])
        ]
        """Sources may be added before the first request."""

    def add_verifier(self, verifier: Verifier) -> None:
        """Adds a kind of credential that stands in the headers. Call it before the first request."""
        headers = self.sources[0]
        self.sources[0] = headers._replace(verifiers=[*headers.verifiers, verifier])

    @property
    def is_open(self) -> bool:
        """Whether requests need no credential: TAILRACE_ALLOW_ANONYMOUS permits it here, and none has ever existed."""
        return self._is_open_without_keys and not self.api_keys.is_used

    def require_credentials(self) -> None:
        """Raises CredentialMissing if the gateway listens beyond loopback and no credential exists.

        Logs a warning if requests need a credential that must be created or restored first. With
        TAILRACE_ALLOW_ANONYMOUS=false the gateway does not wait for it.
        """
        if self.is_open or self._has_credentials or not self.api_keys.is_empty:
            return
        if self.api_keys.is_used or self._allowed is False:
            advice = "create a key with `tailrace keys create`, or restore a backup (docs/BACKUP.md)"
            logger.warning("every request needs a credential, and no API key exists", do=advice)
        else:
            raise CredentialMissing(
                f"TAILRACE_HOST: {self._host} is reachable from other machines, and no API key exists. Do one of "
                "these: create a key with `tailrace keys create` (with `tailrace up`, first on a loopback address); "
                "set TAILRACE_API_KEYS or TAILRACE_JWT_…; or set TAILRACE_ALLOW_ANONYMOUS=true to need none"
            )

    async def authenticate(self, request: Request) -> Principal:
        """Returns the principal of `request`. Raises Refused, LogUnavailable."""
        if self.is_open:
            if is_cross_origin_simple_post(request, self._origins):
                raise Refused("origin_refused", CROSS_ORIGIN_MESSAGE)
            return LOCAL
        found = [(token, source.verifiers) for source in self.sources for token in source.read(request)]
        # Refuse several credentials: a proxy in between might choose another one than this server.
        if len(found) == 1:
            token, verifiers = found[0]
            for verifier in verifiers:
                if token and (principal := await verifier.verify(token, request)) is not None:
                    if self.api_keys.users_of(principal.access.tenant) == "private":
                        principal = _among_private_users(principal)
                    self.require_valid(principal)
                    return principal
        if all(name in request.headers for name in CREDENTIAL_HEADERS):
            raise Refused("credential_invalid", TWO_HEADERS_MESSAGE)
        raise credential_invalid()

    def _has_access(self, principal: Principal) -> bool:
        """Returns whether the principal's scope is still valid: the tenant's users may have become private."""
        users = self.api_keys.users_of(principal.access.tenant)
        return users != "private" or principal.access.viewer == principal.user

    def find_key(self, key_id: str) -> Principal | NoKey:
        """Returns the principal of the API key with this id, or why there is none."""
        static = self._static_keys.find(key_id)
        return self.api_keys.find(key_id) if static is None else static

    def stand_in(self, scope: Scope, credential: str | None) -> Principal:
        """Returns the principal for a turn that starts later than the request that has caused it.

        `credential` is the id of that request's credential; None: it needed none. If rotations have replaced the key,
        it is the newest key, which has the same limits and counters. A credential without a record keeps its id, for
        the limits of the settings. Raises Refused for an API key that was revoked or has expired.
        """
        found = self.api_keys.find_successor(credential) if credential is not None else NoKey.OTHER
        if found is NoKey.ENDED:
            raise Refused("credential_invalid", f"The API key {credential} was revoked or has expired.")
        return found if isinstance(found, Principal) else Principal(scope, credential, frozenset({"write"}))

    def require_valid(self, principal: Principal) -> None:
        """Raises Refused if the credential has expired, its API key has ended, or its users have become private.

        A principal without a key is valid only as long as no credential is needed.
        """
        is_expired = principal.until is not None and principal.until <= time.time()
        if is_expired or (not self.is_open if principal.key is None else self.api_keys.is_ended(principal.key)):
            raise credential_invalid()
        if principal.must_name_user and not self._has_access(principal):
            raise Refused("users_changed", "the users of the tenant have become private meanwhile: repeat the request")

    def watch(self, principal: Principal) -> tuple[Flag, asyncio.TimerHandle | None]:
        """Returns a flag that is set when the credential of `principal` ends, or its tenant's users become private.

        A credential ends when it expires, or its API key is revoked.

        The caller passes both parts of the result to `unwatch` when it no longer needs the flag.
        """
        key = self.find_key(principal.key) if principal.key is not None else NoKey.OTHER
        # A credential that a client got for its key ends at its own expiry or at the key's, whichever is first.
        ends = [each.until for each in (principal, key) if isinstance(each, Principal) and each.until is not None]
        ended = self.api_keys.watch(_users_record(principal) if principal.must_name_user else principal.key)
        if principal.must_name_user and not self._has_access(principal):
            ended.set()
        if not ends:
            return ended, None
        # The timer uses the loop's clock, so that a jump of the wall clock ends no stream.
        return ended, asyncio.get_running_loop().call_later(max(0.0, min(ends) - time.time()), ended.set)

    def unwatch(self, principal: Principal, ended: Flag, timer: asyncio.TimerHandle | None) -> None:
        """Releases what `watch` has returned."""
        self.api_keys.unwatch(_users_record(principal) if principal.must_name_user else principal.key, ended)
        if timer is not None:
            timer.cancel()


def _among_private_users(principal: Principal) -> Principal:
    """Returns the principal in a tenant whose users are private: a user sees its own things alone.

    Raises Refused if the credential must name a user and names none.
    """
    if not principal.must_name_user:
        return principal._replace(has_private_users=True)
    if principal.user is None:
        raise credential_invalid()
    return principal._replace(access=Scope(principal.access.tenant, principal.user))


def _users_record(principal: Principal) -> str:
    """Returns the name of the record in the bucket KEYS whose change ends the streams of a user's credential."""
    return subjects.users_of_tenant(principal.access.tenant)


def credential_invalid() -> Refused:
    """Returns the 401 for a credential that is missing, unknown, expired, revoked or sent twice."""
    return Refused(
        "credential_invalid",
        "The credential is missing, not valid, expired or revoked. "
        "Send one valid key or token as `Authorization: Bearer KEY` or as `x-api-key: KEY`. "
        "The operator creates keys with `tailrace keys create`; lost keys are in a backup.",
    )


def _read_headers(request: Request) -> list[bytes]:
    """Returns the credentials in the headers; an `Authorization` of another scheme counts as an empty credential.

    Current SDKs send a bearer token; older ones and Claude Code send `x-api-key`.
    """
    bearers = [_parse_bearer(header) for header in request.headers.getlist("authorization")]
    return bearers + [header.encode("latin-1") for header in request.headers.getlist("x-api-key")]


def _parse_bearer(header: str) -> bytes:
    scheme, _, token = header.partition(" ")
    return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
