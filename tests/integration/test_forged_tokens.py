"""Forged JWTs at a running gateway: all get the same 401, and none causes a fetch."""

import base64
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.harness import jwts
from tests.harness.jwts import EC_KEY, RSA_KEY, SECRET, by_hand, claims, token
from tests.integration.conftest import Gateway, NewGateway
from tests.integration.test_signing_keys import Issuer
from tests.unit.test_jwt import WRONG

PATH = "/v1/turns/NONE"
OTHER_RSA = rsa.generate_private_key(65537, 2048)
OTHER_EC = ec.generate_private_key(ec.SECP256R1())


def hs256(header: str, payload: str, secret: bytes = SECRET.encode()) -> bytes:
    """Returns a token of exactly these texts, signed with a secret."""
    signed = b".".join(base64.urlsafe_b64encode(text.encode()).rstrip(b"=") for text in (header, payload))
    return signed + b"." + base64.urlsafe_b64encode(hmac.digest(secret, signed, "sha256")).rstrip(b"=")


def with_claim(name: str, value: str) -> bytes:
    """Returns a correctly signed token whose claim `name` is this JSON."""
    others = {key: one for key, one in claims().items() if key != name}
    return hs256('{"alg":"HS256"}', json.dumps(others)[:-1] + f', "{name}": {value}}}')


def by_public_key(header: str) -> dict[str, bytes]:
    """Returns tokens signed by HS256 with the public keys as secret (CVE-2015-9235)."""
    payload = json.dumps(claims())
    known = {"pem": jwts.pem(RSA_KEY), "jwk": json.dumps(jwts.public("rsa", RSA_KEY)).encode()}
    known |= {"ec pem": jwts.pem(EC_KEY), "the set": jwts.key_set(rsa=RSA_KEY, ec=EC_KEY), "nothing": b""}
    return {f"{header} by {name}": hs256(header, payload, secret) for name, secret in known.items()}


def forged(elsewhere: str) -> dict[str, bytes]:
    """Returns forged tokens by their fault. `elsewhere` is the URL of a server with the forger's keys."""
    own = {"jwk": jwts.public("ec", OTHER_EC), "x5c": ["AAAA"]}
    urls = {"jku": elsewhere, "x5u": elsewhere, "kid": elsewhere, "iss": elsewhere}
    return {
        **WRONG,
        **by_public_key('{"alg":"HS256"}'),
        **by_public_key('{"alg":"HS256","kid":"rsa"}'),
        **by_public_key('{"alg":"RS256","alg":"HS256","kid":"rsa"}'),
        **by_public_key('{"alg":"HS256","alg":"RS256","kid":"rsa"}'),
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
            for exp in ("NaN", "-Infinity", "1e999", "-1", "0", "true", "{}", '"9e9"')
        },
        **{f"nbf {nbf}": with_claim("nbf", nbf) for nbf in ("NaN", "1e999", "99999999999", "[]", '"x"')},
        **{f"iat {iat}": with_claim("iat", iat) for iat in ("NaN", "1e999", "99999999999", "[]", '"x"')},
        **{f"iss {iss}": with_claim("iss", iss) for iss in ("null", "1", "{}", '""', json.dumps([jwts.ISSUER]))},
        **{f"aud {aud}": with_claim("aud", aud) for aud in ("null", "1", "{}", '""', "[]", "[1]", "[null]")},
        **{f"sub {sub}": with_claim("sub", sub) for sub in ("null", "true", "{}", "[]", '""', "1.5")},
        "deep payload": hs256('{"alg":"HS256"}', "[" * 5000),
        "payload is a number": hs256('{"alg":"HS256"}', "1"),
        "exp of 5,000 digits": with_claim("exp", "9" * 5000),
        "15 kB of claims, invalid signature": by_hand({"alg": "HS256"}, claims(x="x" * 11_000), b"x" * 32),
        "60 kB": token(x="x" * 40_000),
    }


@pytest.fixture
async def issuer() -> AsyncIterator[tuple[Issuer, str]]:
    """An issuer with an RSA and an EC key, and its URL."""
    issuer = Issuer()
    issuer.tell(jwts.key_set(rsa=RSA_KEY, ec=EC_KEY))
    async with issuer.running() as url:
        yield issuer, url


@pytest.fixture
async def jwt_gateway(nats_url: str, new_gateway: NewGateway, issuer: tuple[Issuer, str]) -> Gateway:
    """A gateway that accepts all three algorithms, so that confusing them could help a forger."""
    return await new_gateway(nats_url, api_keys="", **jwts.settings(jwt_keys=issuer[1]))


async def send(gateway: Gateway, credential: bytes, carrier: str = "authorization") -> httpx2.Response:
    """Sends a request with this credential alone."""
    gateway.client.headers.pop("authorization", None)
    value = b"Bearer " + credential if carrier == "authorization" else credential
    return await gateway.client.get(PATH, headers=[(carrier.encode(), value)])


def can_be_sent(credential: bytes) -> bool:
    """Whether the credential can be a header value."""
    return credential.strip() == credential != b"" and len(credential) < 60_000 and min(credential) >= 32


async def test_a_forged_token_gets_401_and_causes_no_fetch(jwt_gateway: Gateway, issuer: tuple[Issuer, str]) -> None:
    """All answers are equal, in both headers."""
    elsewhere = Issuer()
    elsewhere.tell(jwts.key_set(ec=OTHER_EC, x=OTHER_EC, rsa=OTHER_RSA))
    async with elsewhere.running() as url:
        for good in (token(), token(RSA_KEY, "RS256", {"kid": "rsa"}), token(EC_KEY, "ES256", {"kid": "ec"})):
            assert (await send(jwt_gateway, good)).status_code == 404
        answers: dict[str, Any] = {}
        for name, credential in forged(url).items():
            for carrier in ("authorization", "x-api-key"):
                if can_be_sent(credential):
                    answers[f"{name}, {carrier}"] = await send(jwt_gateway, credential, carrier)
    assert {name: answer.status_code for name, answer in answers.items() if answer.status_code != 401} == {}
    assert len({(answer.content, answer.headers["www-authenticate"]) for answer in answers.values()}) == 1
    assert len(answers) > 200
    assert elsewhere.asked == []
    # At the start, and once for all unknown key ids.
    assert len(issuer[0].asked) <= 2
    assert (await send(jwt_gateway, token())).status_code == 404
