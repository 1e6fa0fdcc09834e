"""With a key that verifies JWTs, no request of the gateway is anonymous, and its tokens are credentials."""

import pytest
from starlette.requests import Request

from tailrace.features.gateway import FEATURES, Settings
from tailrace.features.jwt.gateway import FEATURE
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.startup_checks import build_authenticator
from tailrace.proto.errors import Refused
from tests.harness import jwts


def request(token: bytes) -> Request:
    return Request({"type": "http", "method": "GET", "headers": [(b"authorization", b"Bearer " + token)]})


async def test_a_key_of_jwts_closes_the_gateway_to_clients_without_a_credential() -> None:
    """Also on loopback. Without the feature a token is no credential."""
    closed, without = Settings(**jwts.settings()), [feature for feature in FEATURES if feature is not FEATURE]
    assert build_authenticator(Settings(), FEATURES, ApiKeyCache()).is_open
    authenticator = build_authenticator(closed, FEATURES, ApiKeyCache())
    assert not authenticator.is_open
    assert (await authenticator.authenticate(request(jwts.token()))).access.tenant == jwts.SUBJECT
    keyed = Settings(**jwts.settings(api_keys=f"alice:{'0' * 64}"))
    with pytest.raises(Refused, match="Send one valid key"):
        await build_authenticator(keyed, without, ApiKeyCache()).authenticate(request(jwts.token()))
