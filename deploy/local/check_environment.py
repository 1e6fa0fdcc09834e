"""Checks of the environment variables of `up`, before any process starts."""

from collections.abc import Mapping
from difflib import get_close_matches

import tailrace.gateway.settings
import tailrace.generators.settings
import tailrace.persistence.settings
from tailrace.deploy.local.options import Options
from tailrace.gateway import startup_checks
from tailrace.generators.backends.registry import require_known
from tailrace.generators.failover import parse_backends
from tailrace.persistence.webhooks import sender
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime import settings
from tailrace.proto.service import ProcessSettings

SERVICES: tuple[tuple[str, type[ProcessSettings]], ...] = (
    ("gateway", tailrace.gateway.settings.Settings),
    ("generators", tailrace.generators.settings.Settings),
    ("persistence", tailrace.persistence.settings.Settings),
)


async def check(environ: Mapping[str, str]) -> None:
    """Raises SettingsInvalid for an unknown TAILRACE_… variable, and for values that a process would reject."""
    known = {settings.env_name(field) for _, kind in SERVICES for field in kind.__struct_fields__}
    for name in environ:
        if name.startswith(settings.PREFIX) and name not in known:
            raise SettingsInvalid(f"{name} is not a setting{suggest(name, known)}; docs/SETTINGS.md lists all settings")
    for _, kind in SERVICES:
        settings.read(kind, environ)
    for name in parse_backends(settings.read(tailrace.generators.settings.Settings, environ).backends).backends:
        require_known(name)
    sender.check(settings.read(tailrace.persistence.settings.Settings, environ))
    # Whether an address beyond loopback is allowed is checked when NATS runs, because it stores the API keys.
    await startup_checks.check(settings.read(tailrace.gateway.settings.Settings, environ))


def gateway_settings(options: Options, environ: Mapping[str, str], nats_url: str) -> tailrace.gateway.settings.Settings:
    """Returns the settings that a gateway of this `up` will have."""
    return settings.read(
        tailrace.gateway.settings.Settings, {**environ, "TAILRACE_HOST": options.host, "TAILRACE_NATS_URL": nats_url}
    )


def suggest(name: str, known: set[str]) -> str:
    """Returns a hint with the most similar known name, or an empty text."""
    # Compared without the common prefix, which would make all names similar.
    bare = {each.removeprefix(settings.PREFIX): each for each in sorted(known)}
    return "".join(
        f" (did you mean {bare[found]}?)" for found in get_close_matches(name[len(settings.PREFIX) :], bare, 1)
    )
