"""What `up` was given by its environment is judged before anything starts; nothing here is changed or passed on."""

from collections.abc import Mapping
from difflib import get_close_matches

import gateway.settings
import generators.settings
import persistence.settings
from deploy.options import Options
from gateway import preflight
from generators.backends.table import require_known
from generators.rota import read_backends
from persistence import webhooks
from proto import settings
from proto.errors import SettingsInvalid
from proto.process import ProcessSettings

SERVICES: tuple[tuple[str, type[ProcessSettings]], ...] = (
    ("gateway", gateway.settings.Settings),
    ("generators", generators.settings.Settings),
    ("persistence", persistence.settings.Settings),
)


async def check(environ: Mapping[str, str]) -> None:
    """Raises SettingsInvalid for a name that nobody reads, and for what a process would refuse after its start."""
    known = {settings.env_name(field) for _, kind in SERVICES for field in kind.__struct_fields__}
    for name in environ:
        if name.startswith(settings.PREFIX) and name not in known:
            raise SettingsInvalid(f"{name}: there is no such setting{nearest(name, known)}; docs/SETTINGS.md lists all")
    for _, kind in SERVICES:
        settings.read(kind, environ)
    for name in read_backends(settings.read(generators.settings.Settings, environ).backends).backends:
        require_known(name)
    webhooks.check(settings.read(persistence.settings.Settings, environ))
    # Whether strangers may reach it is asked when NATS runs: that is where keys are.
    await preflight.check(settings.read(gateway.settings.Settings, environ))


def of_gateway(options: Options, environ: Mapping[str, str], nats_url: str) -> gateway.settings.Settings:
    """What a gateway of this `up` will be told."""
    return settings.read(
        gateway.settings.Settings, {**environ, "TAILRACE_HOST": options.host, "TAILRACE_NATS_URL": nats_url}
    )


def nearest(name: str, known: set[str]) -> str:
    # Compared without what all begin with: that alone would make every name look like every other.
    bare = {each.removeprefix(settings.PREFIX): each for each in sorted(known)}
    return "".join(
        f" (did you mean {bare[found]}?)" for found in get_close_matches(name[len(settings.PREFIX) :], bare, 1)
    )
