"""The door: a credential becomes a caller or is refused, and a door that stands open to strangers does not open."""

import hashlib

import msgspec
import pytest
from starlette.requests import Request

from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.authenticate import LOCAL, Authenticator
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.settings import Settings
from tailrace.proto.api_key import SCOPES, new_key
from tailrace.proto.errors import Refused, SettingsInvalid
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats.api_keys import KeyChange

HASH = hashlib.sha256(b"secret").hexdigest()
OTHER_HASH = hashlib.sha256(b"other").hexdigest()


def asking(*headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "method": "GET", "headers": list(headers)})


def door(**given: object) -> Authenticator:
    return Authenticator(Settings(**given), ApiKeyCache())  # type: ignore[arg-type]


async def test_a_key_is_its_tenants() -> None:
    """By its hash alone: two tenants, spaces and a trailing comma in the setting."""
    keys = door(api_keys=f"alice:{HASH}, bob:{OTHER_HASH},")
    alice, bob = Principal(Tenant("alice"), f"env_{HASH[:12]}"), Principal(Tenant("bob"), f"env_{OTHER_HASH[:12]}")
    assert await keys.authenticate(asking((b"x-api-key", b"secret"))) == alice
    assert await keys.authenticate(asking((b"authorization", b"Bearer other"))) == bob


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"x-api-key", b"")],
        [(b"x-api-key", b"secretx")],
        [(b"x-api-key", b"\xff\xfe")],
        [(b"x-api-key", HASH.encode())],
        [(b"authorization", b"secret")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer ")],
        [(b"authorization", b"Basic secret")],
        [(b"x-api-key", b"secret"), (b"x-api-key", b"secret")],
        [(b"authorization", b"Bearer secret"), (b"x-api-key", b"secret")],
    ],
    ids=range(11),
)
async def test_what_is_no_key_is_refused(headers: list[tuple[bytes, bytes]]) -> None:
    """The hash of a key is none, and two credentials are none: another server in the way might take the other one."""
    with pytest.raises(Refused) as refused:
        await door(api_keys=f"alice:{HASH}").authenticate(asking(*headers))
    assert refused.value.code == "credential_invalid"


async def test_where_nobody_needs_a_key_everybody_is_local() -> None:
    """On a laptop, and asked for by a name of the machine's own."""
    assert await door().authenticate(asking((b"host", b"localhost:8000"))) == LOCAL


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "", "box.example", "127.0.0.1.example"])
def test_a_door_that_strangers_reach_needs_keys(host: str) -> None:
    """Of whatever kind, or the word of whoever opens it; what is not known to be loopback is not."""
    with pytest.raises(SettingsInvalid, match="TAILRACE_HOST"):
        door(host=host).require_credentials()
    for closed in (
        door(host=host, api_keys=f"alice:{HASH}"),
        door(host=host, jwt_secret="s" * 32, jwt_issuer="me", jwt_audience="you"),
        used(door(host=host)),
    ):
        closed.require_credentials()
        assert not closed.is_open
    asked_for = door(host=host, allow_anonymous=True)
    asked_for.require_credentials()
    assert asked_for.is_open
    # Nobody has asked for it, and no key has been made yet: closed to all, and so it stays.
    assert not door(host=host).is_open


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
@pytest.mark.parametrize("allow_anonymous", [False, True])
def test_loopback_needs_none_until_there_is_one(host: str, allow_anonymous: bool) -> None:
    """The default works on a laptop; a credential of any kind closes the door, whatever was allowed before."""
    open_door = door(host=host, allow_anonymous=allow_anonymous)
    open_door.require_credentials()
    assert open_door.is_open
    assert not door(host=host, allow_anonymous=allow_anonymous, api_keys=f"alice:{HASH}").is_open
    tokens = {"jwt_secret": "s" * 32, "jwt_issuer": "me", "jwt_audience": "you"}
    assert not door(host=host, allow_anonymous=allow_anonymous, **tokens).is_open
    assert not used(open_door).is_open


def used(a_door: Authenticator) -> Authenticator:
    """As where a key was made, and revoked again."""
    key = new_key(Tenant("alice"), now=1, scopes=SCOPES).record
    revoked = msgspec.structs.replace(key, revoked_at=2)
    a_door.api_keys._put(KeyChange(Seq(1), key.id, revoked))
    return a_door


@pytest.mark.parametrize(
    "api_keys",
    [
        "secret",
        f":{HASH}",
        f"alice:{HASH[:-1]}",
        f"alice:{HASH.upper()}",
        f"Alice:{HASH}",
        f"a.b:{HASH}",
        f"*:{HASH}",
        f"{'x' * 65}:{HASH}",
        f"alice:{HASH};bob:{OTHER_HASH}",
        f"alice:{HASH},bob:{HASH}",
    ],
    ids=range(10),
)
def test_keys_that_cannot_be_read_stop_the_start(api_keys: str) -> None:
    """A tenant becomes a part of a subject; and a key that is left out in silence would be a door left open."""
    with pytest.raises(SettingsInvalid, match="TAILRACE_API_KEYS"):
        door(api_keys=api_keys)


class Exchanged:
    """A kind of credential that looks after nothing but itself."""

    def __init__(self, caller: Principal) -> None:
        self._caller = caller

    async def verify(self, _token: bytes, _request: Request) -> Principal | None:
        return self._caller


@pytest.mark.parametrize(
    ("caller", "is_good"),
    [
        (Principal(Tenant("alice"), "key_ffffffffffffffff"), False),
        (Principal(Tenant("alice"), until=1.0), False),
        (Principal(Tenant("alice"), "key_ffffffffffffffff", until=4e9), False),
        (Principal(Tenant("alice"), until=4e9), True),
        (Principal(Tenant("alice"), f"env_{HASH[:12]}"), True),
        (Principal(Tenant("alice"), "jwt_ffffffffffffffff"), True),
    ],
)
async def test_what_a_key_was_exchanged_for_ends_with_it_whoever_verifies_it(caller: Principal, is_good: bool) -> None:
    """One check for all kinds: a key that is not there any more, and a time that is over."""
    keys = door(api_keys=f"bob:{OTHER_HASH}")
    keys.add_verifier(Exchanged(caller))
    asked = asking((b"authorization", b"Bearer whatever"))
    if is_good:
        assert await keys.authenticate(asked) == caller
    else:
        with pytest.raises(Refused, match="Send one valid key"):
            await keys.authenticate(asked)
