"""Authentication: API keys from settings, anonymous access, and the checks at startup."""

import hashlib
from pathlib import Path
from typing import cast

import msgspec
import pytest
from starlette.requests import Request
from structlog.testing import capture_logs

from tailrace.features.admin.new_key import new_key
from tailrace.gateway.auth.api_key import ApiKey
from tailrace.gateway.auth.api_key_store import ApiKeyStore, KeyPosition, RecordChange, to_change
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.authenticate import Authenticator, Verifier
from tailrace.gateway.auth.principal import NoKey, Principal
from tailrace.gateway.http.scope import SCOPES, scopes_of
from tailrace.gateway.settings import Settings
from tailrace.proto.errors import Refused, SettingsInvalid
from tailrace.proto.ids import Seq, Tenant
from tailrace.proto.nats.client import Message
from tailrace.proto.ownership import WHOLE, Scope

HASH = hashlib.sha256(b"secret").hexdigest()
OTHER_HASH = hashlib.sha256(b"other").hexdigest()
ALICE = Principal(Scope(Tenant("alice"), WHOLE), "jwt_ffffffffffffffff", until=4e9)


def build_request(*headers: tuple[bytes, bytes]) -> Request:
    return Request({"type": "http", "method": "GET", "headers": list(headers)})


def build(*verifiers: Verifier, **given: object) -> Authenticator:
    return Authenticator(Settings(**given), ApiKeyCache(), verifiers)  # type: ignore[arg-type]


async def test_a_configured_key_gives_its_tenant() -> None:
    """The setting may hold spaces and a trailing comma."""
    keys = build(api_keys=f"alice:{HASH}, bob:{OTHER_HASH},")
    alice, bob = (
        Principal(Scope(Tenant("alice"), WHOLE), f"env_{HASH[:12]}"),
        Principal(Scope(Tenant("bob"), WHOLE), f"env_{OTHER_HASH[:12]}"),
    )
    assert await keys.authenticate(build_request((b"x-api-key", b"secret"))) == alice
    assert await keys.authenticate(build_request((b"authorization", b"bearer other"))) == bob


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "", "box.example", "127.0.0.1.example"])
async def test_beyond_loopback_a_credential_or_allow_anonymous_is_needed(host: str) -> None:
    """A host that is not known to be loopback counts as beyond it."""
    with pytest.raises(SettingsInvalid, match="TAILRACE_HOST"):
        build(host=host).require_credentials()
    for closed in (
        build(host=host, api_keys=f"alice:{HASH}"),
        build(AcceptingVerifier(ALICE), host=host),
        await with_revoked_key(build(host=host)),
    ):
        closed.require_credentials()
        assert not closed.is_open
    allowed = build(host=host, allow_anonymous=True)
    allowed.require_credentials()
    assert allowed.is_open
    # Neither allowed nor with a key: it stays closed.
    assert not build(host=host).is_open


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
@pytest.mark.parametrize("allow_anonymous", ["loopback", True])
async def test_loopback_is_open_until_a_credential_exists(host: str, allow_anonymous: str | bool) -> None:
    """A credential of any kind closes it, also with allow_anonymous."""
    open_to_all = build(host=host, allow_anonymous=allow_anonymous)
    open_to_all.require_credentials()
    assert open_to_all.is_open
    assert not build(host=host, allow_anonymous=allow_anonymous, api_keys=f"alice:{HASH}").is_open
    assert not build(AcceptingVerifier(ALICE), host=host, allow_anonymous=allow_anonymous).is_open
    assert not (await with_revoked_key(open_to_all)).is_open


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_with_allow_anonymous_false_the_gateway_starts_without_a_key_and_serves_no_request_without_one(
    host: str,
) -> None:
    """It warns at the start, until a credential of any kind exists. The 401 says how the operator creates a key."""
    closed = build(host=host, allow_anonymous=False)
    with capture_logs() as logs:
        closed.require_credentials()
    assert [(line["log_level"], "tailrace keys create" in line["do"]) for line in logs] == [("warning", True)]
    with pytest.raises(Refused, match="`tailrace keys create`") as refused:
        await closed.authenticate(build_request())
    assert refused.value.code == "credential_invalid"
    for quiet in (
        build(host=host, allow_anonymous=False, api_keys=f"alice:{HASH}"),
        build(AcceptingVerifier(ALICE), host=host, allow_anonymous=False),
        await with_revoked_key(build(host=host, allow_anonymous=False)),
    ):
        with capture_logs() as logs:
            quiet.require_credentials()
        assert (quiet.is_open, logs) == (False, [])


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_gateway_remembers_the_first_key_in_its_file(host: str, tmp_path: Path) -> None:
    """After the loss of the bucket, it serves no request without a key. Without the file, it is as new."""
    file = tmp_path / "first-key"

    def start() -> Authenticator:
        settings = Settings(host=host, allow_anonymous=True, first_key_file=str(file))
        return Authenticator(settings, ApiKeyCache(settings.first_key_file))

    assert start().is_open
    assert not file.exists()
    await with_revoked_key(start())
    restarted = start()
    restarted.require_credentials()
    assert not restarted.is_open
    file.unlink()
    assert start().is_open


async def test_a_first_key_that_cannot_be_remembered_is_needed_nevertheless(tmp_path: Path) -> None:
    """The gateway that has seen a key requires one, and logs that it cannot remember it."""
    away = tmp_path / "away" / "first-key"
    with capture_logs() as logs:
        found = await with_revoked_key(Authenticator(Settings(), ApiKeyCache(str(away))))
    assert not found.is_open
    assert [(line["log_level"], line["path"]) for line in logs] == [("error", str(away))]


def republished(name: str, data: bytes) -> RecordChange:
    """Returns the change that a message on the subject of the record `name` means."""
    headers = f"NATS/1.0\r\nNats-Sequence: 7\r\nNats-Subject: $KV.KEYS.{name}\r\n"
    return to_change(Message(b"live.keys", headers.encode(), data))


@pytest.mark.rule("R38")
def test_a_record_that_is_not_readable_or_has_another_name_is_no_key() -> None:
    """Such a record could not be revoked. A deletion, without a payload, is readable."""
    record = new_key(Tenant("alice"), now=1, scopes=SCOPES).record
    encoded = msgspec.json.encode(record)
    assert republished(record.id, encoded) == RecordChange(Seq(7), record.id, record)
    assert republished(record.id, b"") == RecordChange(Seq(7), record.id, None)
    other = "key_0000000000000000"
    for name, data in ((other, encoded), (record.id, encoded[:-1]), (record.id, b"{}")):
        assert republished(name, data) == RecordChange(Seq(7), name, None, is_unreadable=True)


@pytest.mark.rule("R38")
def test_a_key_is_valid_until_it_is_revoked_or_expires() -> None:
    """From `expires_at` on, it counts as revoked."""
    record = new_key(Tenant("alice"), now=1, scopes=SCOPES, expires_at=9).record
    assert [record.is_good(now) for now in (1, 8.9, 9, 10)] == [True, True, False, False]
    assert not msgspec.structs.replace(record, revoked_at=3).is_good(2)


@pytest.mark.rule("R38")
def test_a_reader_grants_no_scope_that_it_does_not_know() -> None:
    """A newer version may have stored it."""
    assert scopes_of(["write", "own_everything", "read"]) == {"write", "read"}


class RevokedKey:
    """The stored keys of a server on which one was created and revoked again."""

    async def snapshot(self) -> tuple[KeyPosition, list[RecordChange]]:
        key = new_key(Tenant("alice"), now=1, scopes=SCOPES).record
        change = RecordChange(Seq(1), key.id, msgspec.structs.replace(key, revoked_at=2))
        return KeyPosition(None, Seq(1), 1), [change]


async def with_revoked_key(authenticator: Authenticator) -> Authenticator:
    await authenticator.api_keys.load(cast("ApiKeyStore", RevokedKey()))
    return authenticator


class StoredKeys:
    """The stored keys of a server."""

    def __init__(self, *keys: ApiKey) -> None:
        self._keys = keys

    async def snapshot(self) -> tuple[KeyPosition, list[RecordChange]]:
        changes = [RecordChange(Seq(1 + at), key.id, key) for at, key in enumerate(self._keys)]
        return KeyPosition(None, Seq(len(changes)), len(changes)), changes


def key_id(number: int) -> str:
    return f"key_{number:016x}"


def stored(number: int, **given: object) -> ApiKey:
    key = new_key(Tenant("alice"), now=1, scopes=["write"], limits={"requests": 1}).record
    return msgspec.structs.replace(key, id=key_id(number), **given)


ENDED_KEYS = {
    "unknown": (key_id(99), []),
    "revoked": (key_id(1), [stored(1, revoked_at=2)]),
    "expired": (key_id(1), [stored(1, expires_at=2)]),
    "its successor is revoked": (
        key_id(1),
        [stored(1, revoked_at=2, replaced_by=key_id(2)), stored(2, revoked_at=2)],
    ),
    "its successor is unknown": (key_id(1), [stored(1, revoked_at=2, replaced_by=key_id(2))]),
    "its successor is itself": (key_id(1), [stored(1, revoked_at=2, replaced_by=key_id(1))]),
    "its successors are a circle": (
        key_id(1),
        [stored(1, revoked_at=2, replaced_by=key_id(2)), stored(2, revoked_at=2, replaced_by=key_id(1))],
    ),
}


@pytest.mark.rule("R38")
@pytest.mark.parametrize("case", ENDED_KEYS)
async def test_nothing_starts_later_for_a_key_that_has_ended(case: str) -> None:
    """And `or` does not replace the key by another principal."""
    credential, keys = ENDED_KEYS[case]
    authenticator = build()
    await authenticator.api_keys.load(cast("ApiKeyStore", StoredKeys(*keys)))
    with pytest.raises(Refused, match=f"{credential} was revoked or has expired"):
        authenticator.stand_in(Scope(Tenant("alice"), WHOLE), credential)
    assert (authenticator.find_key(credential) or ALICE) is NoKey.ENDED


@pytest.mark.rule("R38")
async def test_a_key_that_was_rotated_is_replaced_by_the_newest_good_key_of_its_chain() -> None:
    """With its limits and the name of its counters. While a key is valid itself, nothing replaces it."""
    first, second = stored(1, revoked_at=2, replaced_by=key_id(2)), stored(2, revoked_at=2, replaced_by=key_id(3))
    third = stored(3, counted_as=key_id(1), expires_at=2**40, replaced_by=key_id(4))
    authenticator = build()
    await authenticator.api_keys.load(cast("ApiKeyStore", StoredKeys(first, second, third, stored(4, revoked_at=2))))
    for before in (1, 2, 3):
        found = authenticator.stand_in(Scope(Tenant("alice"), WHOLE), key_id(before))
        assert (found.access.tenant, found.key, found.counted_as) == ("alice", key_id(3), key_id(1))
        assert found.limits == {"requests": 1}


@pytest.mark.parametrize("credential", [None, "jwt_ffffffffffffffff", f"env_{HASH[:12]}", f"env_{OTHER_HASH[:12]}"])
async def test_a_credential_without_a_record_starts_turns_later(credential: str | None) -> None:
    """A JWT, also an expired one; a key of the settings, also one that they no longer have; and none."""
    authenticator = build(api_keys=f"alice:{HASH}")
    found = authenticator.stand_in(Scope(Tenant("alice"), WHOLE), credential)
    assert found == Principal(Scope(Tenant("alice"), WHOLE), credential, frozenset({"write"}))


class AcceptingVerifier:
    """A verifier that accepts everything."""

    def __init__(self, caller: Principal) -> None:
        self._caller = caller

    async def verify(self, _token: bytes, _request: Request) -> Principal | None:
        return self._caller


@pytest.mark.parametrize(
    ("caller", "is_good"),
    [
        (Principal(Scope(Tenant("alice"), WHOLE), "key_ffffffffffffffff"), False),
        (Principal(Scope(Tenant("alice"), WHOLE), "jwt_ffffffffffffffff", until=1.0), False),
        (Principal(Scope(Tenant("alice"), WHOLE), "key_ffffffffffffffff", until=4e9), False),
        (Principal(Scope(Tenant("alice"), WHOLE), until=4e9), False),
        (Principal(Scope(Tenant("alice"), WHOLE), f"env_{HASH[:12]}"), True),
        (Principal(Scope(Tenant("alice"), WHOLE), "jwt_ffffffffffffffff", until=4e9), True),
    ],
)
async def test_an_exchanged_credential_ends_with_its_key_or_at_its_time(caller: Principal, is_good: bool) -> None:
    """The check is the same for every verifier."""
    keys = build(api_keys=f"bob:{OTHER_HASH}")
    keys.add_verifier(AcceptingVerifier(caller))
    api_request = build_request((b"authorization", b"Bearer whatever"))
    if is_good:
        assert await keys.authenticate(api_request) == caller
    else:
        with pytest.raises(Refused, match="Send one valid key"):
            await keys.authenticate(api_request)
