"""What `up` was given by its environment is judged before anything starts; nothing here is changed or passed on."""

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
from tailrace.proto.runtime.main import ProcessSettings

SERVICES: tuple[tuple[str, type[ProcessSettings]], ...] = (
    ("gateway", tailrace.gateway.settings.Settings),
    ("generators", tailrace.generators.settings.Settings),
    ("persistence", tailrace.persistence.settings.Settings),
)


async def check(environ: Mapping[str, str]) -> None:
    """Raises SettingsInvalid for a name that nobody reads, and for what a process would refuse after its start."""
    known = {settings.env_name(field) for _, kind in SERVICES for field in kind.__struct_fields__}
    for name in environ:
        if name.startswith(settings.PREFIX) and name not in known:
            raise SettingsInvalid(f"{name}: there is no such setting{nearest(name, known)}; docs/SETTINGS.md lists all")
    for _, kind in SERVICES:
        settings.read(kind, environ)
    for name in parse_backends(settings.read(tailrace.generators.settings.Settings, environ).backends).backends:
        require_known(name)
    sender.check(settings.read(tailrace.persistence.settings.Settings, environ))
    # Whether strangers may reach it is asked when NATS runs: that is where keys are.
    await startup_checks.check(settings.read(tailrace.gateway.settings.Settings, environ))


def of_gateway(options: Options, environ: Mapping[str, str], nats_url: str) -> tailrace.gateway.settings.Settings:
    """What a gateway of this `up` will be told."""
    return settings.read(
        tailrace.gateway.settings.Settings, {**environ, "TAILRACE_HOST": options.host, "TAILRACE_NATS_URL": nats_url}
    )


def nearest(name: str, known: set[str]) -> str:
    # Compared without what all begin with: that alone would make every name look like every other.
    bare = {each.removeprefix(settings.PREFIX): each for each in sorted(known)}
    return "".join(
        f" (did you mean {bare[found]}?)" for found in get_close_matches(name[len(settings.PREFIX) :], bare, 1)
    )
