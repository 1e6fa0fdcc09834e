"""Verification of JWTs, and the known attacks on it."""

import base64
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from tailrace.features.jwt.jwks import parse
from tailrace.features.jwt.settings import Settings
from tailrace.features.jwt.verifier import LEEWAY_S, JwtVerifier, scopes_in, tenant_of_claim
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.scope import TENANT_SCOPES
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.ids import is_token
from tests.harness import jwts
from tests.harness.jwts import EC_KEY, ISSUER, RSA_KEY, SECRET, SUBJECT, by_hand, claims, token

ASKING = Request({"type": "http", "method": "GET", "headers": []})


def verifier(**given: object) -> JwtVerifier:
    return JwtVerifier(Settings(**jwts.settings(**given)))


async def caller(text: bytes, **given: object) -> Principal | None:
    return await verifier(**given).verify(text, ASKING)


async def authenticate(text: bytes, **given: object) -> Principal:
    """Returns the principal of a token, which must be valid."""
    found = await caller(text, **given)
    assert found is not None
    return found


@pytest.fixture
def keys_file(tmp_path: Path) -> str:
    path = tmp_path / "keys.json"
    path.write_bytes(jwts.key_set(rsa=RSA_KEY, ec=EC_KEY))
    return str(path)


async def test_a_supabase_token_gives_its_user_as_tenant() -> None:
    """HS256 by the secret of the project, audience `authenticated`, a UUID as `sub`."""
    expires = int(time.time()) + 100
    found = await authenticate(token(exp=expires))
    assert (found.access.tenant, found.scopes, found.until, found.turn) == (
        SUBJECT,
        TENANT_SCOPES,
        expires + LEEWAY_S,
        None,
    )
    assert found.key is not None
    assert is_token(found.key)
    assert SUBJECT not in found.key


async def test_a_single_public_key_needs_no_kid(tmp_path: Path) -> None:
    """With two keys a token must have one."""
    path = tmp_path / "keys.json"
    signed = token(EC_KEY, "ES256")
    path.write_bytes(jwts.key_set(ec=EC_KEY))
    assert await caller(signed, jwt_keys=str(path)) is not None
    path.write_bytes(jwts.key_set(ec=EC_KEY, rsa=RSA_KEY))
    assert await caller(signed, jwt_keys=str(path)) is None


async def test_a_private_key_in_the_key_set_verifies_as_its_public_key_does(tmp_path: Path) -> None:
    """An operator may have saved the whole pair."""
    pairs = {
        "RS256": (RSA_KEY, jwt.algorithms.RSAAlgorithm.to_jwk(RSA_KEY, as_dict=True)),
        "ES256": (EC_KEY, jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY, as_dict=True)),
    }
    path = tmp_path / "keys.json"
    for algorithm, (key, jwk) in pairs.items():
        assert "d" in jwk
        path.write_text(json.dumps({"keys": [jwk]}))
        assert await caller(token(key, algorithm), jwt_keys=str(path)) is not None, algorithm


NOW = int(time.time())
HEADER = {"alg": "HS256", "typ": "JWT"}
OTHER_RSA = rsa.generate_private_key(65537, 2048)
WRONG = {
    "no algorithm": by_hand({"typ": "JWT"}, claims(), b"x"),
    "another secret": token("another-secret-that-is-also-more-than-32-bytes-long"),
    "another hash": token(algorithm="HS512", key=SECRET * 2),
    "an unknown key": token(OTHER_RSA, "RS256", {"kid": "rsa"}),
    "a key of another type": token(EC_KEY, "ES256", {"kid": "rsa"}),
    "another key's name": token(RSA_KEY, "RS256", {"kid": "ec"}),
    "no key's name": token(RSA_KEY, "RS256"),
    "another hash of that key": token(RSA_KEY, "RS512", {"kid": "rsa"}),
    "PS256 of that key": token(RSA_KEY, "PS256", {"kid": "rsa"}),
    "a kid that is empty": token(RSA_KEY, "RS256", {"kid": ""}),
    "a kid that is a number": by_hand({"alg": "RS256", "kid": 1}, claims(), b"x"),
    "a critical extension": token(headers={"crit": ["exp"], "exp": NOW + 9}),
    "expired": token(exp=NOW - LEEWAY_S - 60),
    "expiry of another type": token(exp=[NOW + 9]),
    "another audience": token(aud="anon"),
    "other audiences": token(aud=["anon", "service_role"]),
    "another issuer": token(iss=f"{ISSUER}/"),
    "issuers": by_hand(HEADER, claims(iss=[ISSUER]), b"x"),
    "two parts": token().rpartition(b".")[0],
    "four parts": token() + b".x",
    "a part that is empty": b"..",
    "padding": token() + b"=",
    "a space": b" " + token(),
    "NUL": token() + b"\0",
    "not ASCII": token() + b"\xff",
    "100 kB": token(big="x" * 100_000),
    "a header 100 kB long": by_hand({"alg": "HS256", "x": "x" * 100_000}, claims(), b"x"),
    "a header that nests deep": b"W1tb" * 3000 + b".e30.eA",
    "a body that nests deep": b"e30." + b"W1tb" * 3000 + b".eA",
    "a header that is no UTF-8": b"eyJhbGciOiL_In0.e30.eA",
    "a header that is no object": by_hand(["HS256"], claims(), b"x"),
    "SQL": b"' OR '1'='1' --",
    "empty": b"",
}


OTHER_EC = ec.generate_private_key(ec.SECP256R1())


def hs256(header: str, payload: str, secret: bytes = SECRET.encode()) -> bytes:
    """Returns a token of exactly these texts, signed with a secret."""
    signed = b".".join(base64.urlsafe_b64encode(text.encode()).rstrip(b"=") for text in (header, payload))
    return signed + b"." + base64.urlsafe_b64encode(hmac.digest(secret, signed, "sha256")).rstrip(b"=")


def with_claim(name: str, value: str, without: str = "") -> bytes:
    """Returns a correctly signed token whose claim `name` is this JSON, and that lacks the claim `without`."""
    others = {key: one for key, one in claims().items() if key not in (name, without)}
    return hs256('{"alg":"HS256"}', json.dumps(others)[:-1] + f', "{name}": {value}}}')


def signed_by_public_key(header: str) -> dict[str, bytes]:
    """Returns tokens signed by HS256 with the public keys as secret (CVE-2015-9235)."""
    payload = json.dumps(claims())
    known = {"pem": jwts.pem(RSA_KEY), "jwk": json.dumps(jwts.public("rsa", RSA_KEY)).encode()}
    known |= {"ec pem": jwts.pem(EC_KEY), "the set": jwts.key_set(rsa=RSA_KEY, ec=EC_KEY), "nothing": b""}
    return {f"{header} by {name}": hs256(header, payload, secret) for name, secret in known.items()}


def forged_tokens() -> dict[str, bytes]:
    """Returns forged tokens by their fault."""
    elsewhere = "http://127.0.0.1:9/keys"
    own = {"jwk": jwts.public("ec", OTHER_EC), "x5c": ["AAAA"]}
    urls = {"jku": elsewhere, "x5u": elsewhere, "kid": elsewhere, "iss": elsewhere}
    return {
        **WRONG,
        **signed_by_public_key('{"alg":"HS256"}'),
        **signed_by_public_key('{"alg":"HS256","kid":"rsa"}'),
        **signed_by_public_key('{"alg":"RS256","alg":"HS256","kid":"rsa"}'),
        **signed_by_public_key('{"alg":"HS256","alg":"RS256","kid":"rsa"}'),
        **{
            f"alg {alg}": by_hand({"alg": alg}, claims(), b"x")
            for alg in ("none", "NONE", "nOnE", "", " none", "HS256 ")
        },
        **{
            f"alg {alg}, unsigned": by_hand({"alg": alg}, claims())
            for alg in ("none", "NONE", "nOnE", "HS256", "RS256")
        },
        "alg none twice": hs256('{"alg":"none","alg":"none"}', json.dumps(claims())),
        "alg is a list": hs256('{"alg":["HS256"]}', json.dumps(claims())),
        **{f"own {name}": token(OTHER_EC, "ES256", {name: one, "kid": "ec"}) for name, one in own.items()},
        **{f"{name} elsewhere": token(OTHER_EC, "ES256", {"kid": "x", name: url}) for name, url in urls.items()},
        "issuer elsewhere": token(OTHER_EC, "ES256", {"kid": "x"}, iss=elsewhere),
        **{
            f"kid {kid}": token(OTHER_RSA, "RS256", {"kid": kid})
            for kid in ("../../keys", "rsa'--", "rsa\0", "r" * 9000)
        },
        "P-384": token(ec.generate_private_key(ec.SECP384R1()), "ES384", {"kid": "ec"}),
        "secp256k1": token(ec.generate_private_key(ec.SECP256K1()), "ES256K", {"kid": "ec"}),
        "Ed25519": token(ed25519.Ed25519PrivateKey.generate(), "EdDSA", {"kid": "ec"}),
        "EC signature of zeros": by_hand({"alg": "ES256", "kid": "ec"}, claims(), b"\0" * 64),
        "detached": token(headers={"b64": False, "crit": ["b64"]}),
        **{
            f"exp {exp}": with_claim("exp", exp)
            for exp in ("NaN", "-Infinity", "1e999", "-1", "0", "true", "{}", '"9e9"', '"9999999999"')
        },
        **{f"{name} as text": with_claim(name, f'"{NOW - 9}"') for name in ("nbf", "iat")},
        **{f"{name} is true": with_claim(name, "true") for name in ("nbf", "iat")},
        "a claim twice": with_claim("sub", '"ann", "sub": "bob"'),
        "a claim twice, alike": with_claim("sub", '"ann", "s\\u0075b": "ann"'),
        "a member of a claim twice": with_claim("app", '{"org": "acme", "org": "other"}'),
        "alg twice, alike": hs256('{"alg":"HS256","alg":"HS256"}', json.dumps(claims())),
        "a member of the header twice": hs256('{"alg":"HS256","x":1,"x":2}', json.dumps(claims())),
        **{f"nbf {nbf}": with_claim("nbf", nbf) for nbf in ("NaN", "1e999", "99999999999", "[]", '"x"')},
        **{f"iat {iat}": with_claim("iat", iat) for iat in ("NaN", "1e999", "99999999999", "[]", '"x"')},
        **{f"iss {iss}": with_claim("iss", iss) for iss in ("null", "1", "{}", '""', json.dumps([jwts.ISSUER]))},
        **{f"aud {aud}": with_claim("aud", aud) for aud in ("null", "1", "{}", '""', "[]", "[1]", "[null]")},
        **{f"sub {sub}": with_claim("sub", sub) for sub in ("null", "true", "{}", "[]", '""', "1.5")},
        "deep payload": hs256('{"alg":"HS256"}', "[" * 5000),
        "payload is a number": hs256('{"alg":"HS256"}', "1"),
        "exp of 5,000 digits": with_claim("exp", "9" * 5000),
        "15 kB of claims, invalid signature": by_hand({"alg": "HS256"}, claims(x="x" * 11_000), b"x" * 32),
        **{f"no {name}": with_claim("other", "1", without=name) for name in ("sub", "aud", "iss", "exp")},
        "60 kB": token(x="x" * 40_000),
    }


@pytest.mark.parametrize("secret", ["", SECRET])
async def test_a_forged_token_is_refused(keys_file: str, secret: str) -> None:
    """By a gateway that accepts all three algorithms, so that confusing them could help a forger."""
    seen = verifier(jwt_secret=secret, jwt_keys=keys_file)
    by_secret = [token()] if secret else []
    for good in (token(RSA_KEY, "RS256", {"kid": "rsa"}), token(EC_KEY, "ES256", {"kid": "ec"}), *by_secret):
        found = await seen.verify(good, ASKING)
        assert found is not None
        assert found.access.tenant == SUBJECT
    tokens = forged_tokens()
    assert len(tokens) > 100
    assert [name for name, text in tokens.items() if await seen.verify(text, ASKING) is not None] == []


@pytest.mark.rule("F19")
async def test_clocks_may_differ_by_30_seconds() -> None:
    now = int(time.time())
    found = await authenticate(token(exp=now - LEEWAY_S + 15, nbf=now + LEEWAY_S - 5, iat=now + LEEWAY_S - 5))
    assert found.until is not None
    assert now < found.until < now + LEEWAY_S


async def test_a_huge_expiry_is_valid() -> None:
    """No number that an issuer could sign raises an error."""
    for exp in (10**12, 10**30, 10**308):
        assert (await authenticate(token(exp=exp))).until is not None


@pytest.mark.rule("S13")
async def test_two_tokens_with_the_same_beginning_are_two_identities() -> None:
    """CVE-2026-35030: the first 300 characters are equal."""

    def of(name: str) -> bytes:
        return jwt.encode({"a": "x" * 200, **claims(sub=None), "sub": name}, SECRET, algorithm="HS256").encode()

    alice, bob, seen = of("alice"), of("bob"), verifier()
    assert alice[:300] == bob[:300]
    for text, whose in [(alice, "alice"), (bob, "bob"), (alice, "alice")]:
        found = await seen.verify(text, ASKING)
        assert found is not None
        assert found.access.tenant == whose
    forged = alice.rpartition(b".")[0] + b"." + bob.rpartition(b".")[2]
    for text in (forged, alice[:300], alice[:64], alice[:-1]):
        assert await seen.verify(text, ASKING) is None


async def test_the_tenant_comes_from_the_configured_claim() -> None:
    """It may be a number. A token without the claim is refused."""
    for org in ("acme", 42):
        assert (await authenticate(token(org=org), jwt_tenant_claim="org")).access.tenant == str(org)
    for invalid in (None, "", True, ["acme"], {"id": "acme"}, 1.5):
        assert await caller(token(org=invalid), jwt_tenant_claim="org") is None


async def test_a_token_whose_claim_names_no_user_is_refused() -> None:
    """Otherwise a body could name another user. A token without the claim leaves that to the body."""
    for user, expected in (("ann", "ann"), (42, "42"), (None, None)):
        assert (await authenticate(token(email=user), jwt_user_claim="email")).user == expected
    for invalid in ("", "a\0", "x" * 10_000, True, ["ann"], 1.5):
        assert await caller(token(email=invalid), jwt_user_claim="email") is None


async def test_two_users_of_a_tenant_have_two_key_ids() -> None:
    """The ids reveal nothing of the users."""
    alice, bob, again = [
        await authenticate(token(org="acme", sub=sub), jwt_tenant_claim="org") for sub in ("alice", "bob", "alice")
    ]
    assert alice.key == again.key != bob.key


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_claims_never_give_the_same_tenant(one: str, other: str) -> None:
    """What cannot be part of a subject is hashed as a whole."""
    assert is_token(tenant_of_claim(one))
    assert (tenant_of_claim(one) == tenant_of_claim(other)) == (one == other)
    assert tenant_of_claim(tenant_of_claim(one)) != tenant_of_claim(one) or is_token(one)


@pytest.mark.parametrize("whose", ["auth0|5f7c8e", "Alice", "a.b", "*", ">", "a" * 65, "ü", "u_x", "\ud800", " ", "\0"])
def test_a_claim_that_is_no_valid_name_becomes_a_hash(whose: str) -> None:
    """Upper and lower case differ."""
    assert tenant_of_claim(whose).startswith("u_")
    assert len(tenant_of_claim(whose)) == 64
    assert tenant_of_claim(whose) != tenant_of_claim(whose.swapcase() + "x")


async def test_scopes_come_from_the_configured_claim() -> None:
    """As words or as a list; unknown names grant nothing, and no claim grants none."""
    expected: list[tuple[object, set[str]]] = [
        ("read", {"read"}),
        ("openid read  write admin", {"read", "write"}),
        (["read", "manage", 7, None], {"read", "manage"}),
        ("", set()),
        (None, set()),
        ("READ", set()),
        (7, set()),
    ]
    for claim, scopes in expected:
        assert (await authenticate(token(scope=claim), jwt_scopes_claim="scope")).scopes == scopes
    assert scopes_in("read write") == scopes_in(["write", "read"])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("TAILRACE_JWT_SECRET", {"jwt_secret": "x" * 31}),
        ("TAILRACE_JWT_SECRET", {"jwt_secret": jwts.pem(RSA_KEY).decode()}),
        ("TAILRACE_JWT_ISSUER", {"jwt_issuer": ""}),
        ("TAILRACE_JWT_AUDIENCE", {"jwt_audience": ""}),
    ],
)
def test_incomplete_settings_stop_the_start(name: str, given: dict[str, str]) -> None:
    """Without issuer or audience every token of the login would be accepted."""
    with pytest.raises(SettingsInvalid, match=name) as refused:
        verifier(**given)
    for value in given.values():
        assert not value or value not in str(refused.value)


async def test_unusable_keys_of_a_jwks_are_skipped() -> None:
    """Published secrets, keys for encryption, other curves and short keys."""
    weak = rsa.generate_private_key(65537, 1024)
    published = {
        "oct": {"kty": "oct", "kid": "oct", "k": "c2VjcmV0LXRoYXQtZXZlcnlib2R5LWNhbi1yZWFkLTAwMDA", "alg": "HS256"},
        "enc": {**jwts.public("enc", RSA_KEY), "use": "enc"},
        "hs": {**jwts.public("hs", RSA_KEY), "alg": "HS256"},
        "ps": {**jwts.public("ps", RSA_KEY), "alg": "PS256"},
        "p384": jwts.public("p384", ec.generate_private_key(ec.SECP384R1())),
        "weak": jwts.public("weak", weak),
        "broken": {"kty": "RSA", "kid": "broken", "n": "AQAB"},
        "odd": {"kty": ["RSA"], "kid": {}},
        "numbers": {"kty": "RSA", "kid": "numbers", "n": 1, "e": 3},
        "nothing": {"kty": "EC", "crv": "P-256", "kid": "nothing", "x": None, "y": {}},
        "off the curve": {
            "kty": "EC",
            "crv": "P-256",
            "kid": "off the curve",
            "x": "AQ" * 21 + "A",
            "y": "AQ" * 21 + "A",
        },
        "fine": jwts.public("fine", RSA_KEY),
    }
    found = parse(json.dumps({"keys": [*published.values()]}).encode())
    assert {key for key in found if key is not None} == {"fine"}
    assert found["fine"].algorithm == "RS256"


def test_the_secret_is_not_in_the_repr() -> None:
    assert SECRET not in repr(verifier())


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (lambda: token(exp=1), "Signature has expired"),
        (lambda: token("another secret of thirty-two bytes"), "Signature verification failed"),
        (lambda: token(aud="other"), "Audience doesn't match"),
        (lambda: token(RSA_KEY, "RS256", {"kid": "a"}), "no key for the algorithm 'RS256' and kid 'a'"),
        (lambda: token(sub=""), "the claim 'sub' names no tenant"),
    ],
)
async def test_the_reason_of_a_refusal_is_logged(made: Callable[[], bytes], why: str) -> None:
    """The client learns nothing about it, so an operator has nothing else."""
    with structlog.testing.capture_logs() as lines:
        assert await caller(made()) is None
    assert lines == [{"event": "JWT refused", "log_level": "debug", "why": why}]
