"""The secret that all gateways sign tokens with: 256 random bits in the bucket SECRETS."""

import secrets

from tailrace.proto.errors import LogMisconfigured
from tailrace.proto.nats.connection import Connection
from tailrace.proto.nats.kv import Bucket
from tailrace.proto.subjects import SECRETS

NAME = "signing"
BYTES = 32


async def signing_secret(connection: Connection) -> bytes:
    """Returns the secret, which the first call in any process creates and which is never printed.

    Raises LogUnavailable, and LogMisconfigured for a shorter secret, with which tokens could be forged.
    """
    found = await Bucket(connection, SECRETS, "the signing secret").create(NAME, secrets.token_bytes(BYTES))
    if len(found) < BYTES:
        raise LogMisconfigured(
            f"the signing secret has {len(found)} bytes, and needs {BYTES}: delete it with `nats kv del SECRETS {NAME}`"
        )
    return found
