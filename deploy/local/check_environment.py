"""Checks of the environment variables of `up`, before any process starts."""

from collections.abc import Mapping

import tailrace.features.backends
import tailrace.features.gateway
import tailrace.features.persistence
import tailrace.gateway.settings
from tailrace.deploy.local.data_dir import FIRST_KEY
from tailrace.deploy.local.options import Options
from tailrace.gateway import startup_checks
from tailrace.generators.backend_order import parse_backends
from tailrace.generators.backends.registry import find_kind
from tailrace.persistence import feature
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.models import extend_models
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.did_you_mean import find_closest, suggest
from tailrace.proto.service import ProcessSettings

SERVICES: tuple[tuple[str, type[ProcessSettings]], ...] = (
    ("gateway", tailrace.features.gateway.Settings),
    ("generators", tailrace.features.backends.Settings),
    ("persistence", tailrace.features.persistence.Settings),
)
FIRST_KEY_FILE = "TAILRACE_FIRST_KEY_FILE"
# Settings that `up` chooses for its processes: to ignore a value silently would be worse than a refusal.
CHOSEN = {
    "TAILRACE_NATS_URL": (
        "`tailrace up` starts a nats-server of its own: unset it, or start the processes one by one with your NATS "
        "(docs/RUNBOOK.md, Set up your own NATS)"
    ),
    "TAILRACE_DEMO": "`tailrace up` sets it: unset it",
    FIRST_KEY_FILE: "`tailrace up` keeps this file in the data directory: unset it",
    "TAILRACE_DATABASE": "`tailrace up` keeps an SQLite database in the data directory: unset it, and choose --data. "
    "For PostgreSQL, start the processes yourself: docs/POSTGRESQL.md",
}
# Variables of the SDKs of the backends. A mistyped variable would be ignored, and the simulated Claude would answer.
SDK_NAMES = ("ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "ANTHROPIC_AUTH_TOKEN")
SIMILARITY_MIN = 0.86
# Variables of the commands that are clients of a gateway.
CLIENT_NAMES = ("TAILRACE_URL", "TAILRACE_KEY")


async def check(environ: Mapping[str, str]) -> None:
    """Raises SettingsInvalid for an unknown TAILRACE_… variable, and for values that a process would reject.

    Accepts settings that only earlier versions had: the processes log a warning.
    """
    known = {settings.env_name(field) for _, kind in SERVICES for field in kind.__struct_fields__}
    without_error = {*known, *CLIENT_NAMES, *settings.REMOVED}
    for name, instead in CHOSEN.items():
        if environ.get(name):
            raise SettingsInvalid(f"{name} is set, but {instead}")
    for name in environ:
        if name.startswith(settings.PREFIX) and name not in without_error:
            hint = suggest(name, known, settings.PREFIX)
            raise SettingsInvalid(f"{name} is not a setting{hint}; `tailrace explain settings` lists all")
    for _, kind in SERVICES:
        settings.read(kind, environ)
    generators = settings.read(tailrace.features.backends.Settings, environ)
    extend_models(generators.models_file)
    for name in parse_backends(generators.backends).backends:
        find_kind(name, tailrace.features.backends.BACKENDS)
    persistence = settings.read(tailrace.features.persistence.Settings, environ)
    feature.check(persistence, tailrace.features.persistence.FEATURES)
    # An address beyond loopback is checked later, when NATS runs, because NATS stores the API keys.
    gateway = settings.read(tailrace.features.gateway.Settings, environ)
    await startup_checks.check(gateway, tailrace.features.gateway.FEATURES)


def gateway_settings(options: Options, environ: Mapping[str, str], nats_url: str) -> tailrace.gateway.settings.Settings:
    """Returns the settings that a gateway of this `up` will have."""
    chosen = {
        "TAILRACE_HOST": options.host,
        "TAILRACE_NATS_URL": nats_url,
        FIRST_KEY_FILE: str(options.data_dir / FIRST_KEY),
    }
    return settings.read(tailrace.features.gateway.Settings, {**environ, **chosen})


def find_mistyped(environ: Mapping[str, str]) -> list[str]:
    """Returns a warning for each variable whose name is similar to one of `SDK_NAMES`."""
    return [
        f"{name} is set but has no meaning: did you mean {found}?"
        for name in sorted(environ)
        if name not in SDK_NAMES and (found := find_closest(name.upper(), SDK_NAMES, SIMILARITY_MIN))
    ]
