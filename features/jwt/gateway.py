"""Makes a gateway accept JWTs, and refreshes the public keys that verify them."""

from tailrace.features.jwt.settings import Settings
from tailrace.features.jwt.verifier import JwtVerifier
from tailrace.gateway.feature import Feature, Parts
from tailrace.gateway.services import Gateway


def make_verifier(settings: Settings) -> JwtVerifier | None:
    """Returns the verifier; None if the settings name no key. Raises SettingsInvalid."""
    return JwtVerifier(settings) or None


def start(gateway: Gateway, _settings: Settings) -> Parts:
    """Refreshes the keys of the verifier that the gateway has."""
    verifiers = gateway.authenticator.verifiers
    return Parts(background=tuple(one.refresh_periodically for one in verifiers if isinstance(one, JwtVerifier)))


FEATURE = Feature(Settings, start, make_verifier=make_verifier)
