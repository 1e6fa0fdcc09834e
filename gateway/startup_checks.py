"""Checks a gateway's settings before it starts, without NATS."""

import ipaddress
import socket
from pathlib import Path

from tailrace.gateway.auth.allowed_hosts import AllowedHosts
from tailrace.gateway.auth.api_keys import ApiKeyCache
from tailrace.gateway.auth.authenticate import Authenticator
from tailrace.gateway.feature import Features
from tailrace.gateway.http import server
from tailrace.gateway.settings import Settings
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.models import extend_models, parse_aliases
from tailrace.proto.runtime.settings import select


async def check(settings: Settings, features: Features) -> None:
    """Raises SettingsInvalid, with the variable's name and its valid values."""
    build_authenticator(settings, features, ApiKeyCache())
    AllowedHosts(settings)
    extend_models(settings.models_file)
    parse_aliases(settings.model_aliases)
    networks(settings.proxies)
    _check_disk(settings.disk)
    _check_first_key_file(settings.first_key_file)
    for feature in features:
        if feature.check is not None:
            await feature.check(select(settings, feature.settings))


def build_authenticator(settings: Settings, features: Features, api_keys: ApiKeyCache) -> Authenticator:
    """Returns the authenticator with the credentials of all features. Raises SettingsInvalid."""
    made = [feature.make_verifier(select(settings, feature.settings)) for feature in features]
    return Authenticator(settings, api_keys, [one for one in made if one is not None])


def _check_disk(directory: str) -> None:
    if directory and not Path(directory).is_dir():
        raise SettingsInvalid(f"TAILRACE_DISK: {directory} is not a directory: set it to one on the disk of the log")


def _check_first_key_file(path: str) -> None:
    # In a folder that is away, the file would not be found, and no request would need a key.
    if path and not Path(path).parent.is_dir():
        raise SettingsInvalid(f"TAILRACE_FIRST_KEY_FILE: {path}: {Path(path).parent} is not a directory: create it")


def check_address(settings: Settings) -> None:
    """Raises SettingsInvalid when this machine does not have the address, or the inherited socket does not exist."""
    if settings.listen_fd:
        try:
            socket.socket(fileno=settings.listen_fd).detach()
        except OSError as error:
            raise SettingsInvalid(f"TAILRACE_LISTEN_FD: {settings.listen_fd} is not an inherited socket") from error
    try:
        if not settings.host:
            raise OSError("no address")
        server.listen(settings.host, 0, 0).close()
    except (OSError, UnicodeError) as error:
        raise SettingsInvalid(
            f"TAILRACE_HOST: {settings.host!r} is not an address of this machine: use 127.0.0.1, or 0.0.0.0 for all"
        ) from error


def networks(proxies: str) -> list[str]:
    """Parses TAILRACE_PROXIES. Raises SettingsInvalid for a text that is no address and no network."""
    named = [name.strip() for name in proxies.split(",") if name.strip()]
    for name in named:
        try:
            ipaddress.ip_network(name)
        except ValueError as error:
            raise SettingsInvalid(
                f"TAILRACE_PROXIES: {name} is neither an address nor a network: 10.0.0.5, or 10.0.0.0/8"
            ) from error
    return named
