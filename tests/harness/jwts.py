"""JWTs as an issuer signs them, and forged ones."""

import base64
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

SECRET = "super-secret-jwt-token-with-at-least-32-characters-long"
ISSUER = "https://project.supabase.co/auth/v1"
AUDIENCE = "authenticated"
SUBJECT = "7c1f8f0e-6f1d-4f57-9f3a-2f0d3e1b9a55"

RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def settings(**given: object) -> dict[str, Any]:
    """Returns the settings of a gateway that accepts this issuer's tokens, signed with the secret."""
    return {"jwt_secret": SECRET, "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **given}


def claims(**given: object) -> dict[str, Any]:
    """Returns claims as Supabase issues them; None removes a claim."""
    now = int(time.time())
    fields = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": now + 3600, "iat": now, "role": "authenticated"}
    return {name: value for name, value in {**fields, **given}.items() if value is not None}


def token(key: Any = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **given: object) -> bytes:
    return jwt.encode(claims(**given), key, algorithm=algorithm, headers=headers).encode()


def by_hand(header: object, payload: object, signature: bytes = b"") -> bytes:
    """Returns a token that no library would sign."""
    parts = [json.dumps(part).encode() for part in (header, payload)] + [signature]
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


def key_set(**keys: Any) -> bytes:
    """Returns a JWKS of the public keys of `keys`, with their names as key ids."""
    return json.dumps({"keys": [public(name, key) for name, key in keys.items()]}).encode()


def public(name: str, key: Any) -> dict[str, Any]:
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"}


def pem(key: Any) -> bytes:
    """Returns a public key as PEM: an attacker may use it as an HMAC secret."""
    encoded: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
