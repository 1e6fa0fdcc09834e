"""The kinds of backends. A backend's module is imported when its name is used, so that its library is optional."""

from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple

import msgspec

from tailrace.generators.backends import Backend
from tailrace.generators.settings import Settings
from tailrace.proto.errors import SettingsInvalid
from tailrace.proto.runtime.settings import NoSettings


class BackendKind(NamedTuple):
    """A kind of backend, which the setting `backends` can name."""

    name: str
    module: str
    """Its function `backend` opens a backend from the settings of the process, or raises SettingsInvalid."""
    settings: type[msgspec.Struct] = NoSettings
    """Read from the environment, and printed by `--env`, with the settings of the core."""
    install: str = "make setup"
    """How to install its library in a checkout."""


Kinds = Sequence[BackendKind]

CORE: Kinds = (BackendKind("claude", "tailrace.generators.backends.anthropic_api"),)
"""Anthropic's own API. All other kinds belong to features."""


def find_kind(name: str, kinds: Kinds) -> BackendKind:
    """Returns the kind `name`, one of `kinds` or of the core. Raises SettingsInvalid if there is none."""
    known = {kind.name: kind for kind in (*CORE, *kinds)}
    if name not in known:
        raise SettingsInvalid(
            f"TAILRACE_BACKENDS: {name!r} is not one of {', '.join(known)}: name one of these, "
            "or add the feature that has it (features/backends.py)"
        )
    return known[name]


def open_backend(name: str, settings: Settings, kinds: Kinds) -> Backend:
    """Opens a backend. Raises SettingsInvalid if it does not exist, or its library or a setting is missing."""
    kind = find_kind(name, kinds)
    try:
        module = import_module(kind.module)
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed: {kind.install}, or pip install 'tailrace[{name}]'"
        raise SettingsInvalid(f"TAILRACE_BACKENDS: {name} cannot be used: {missing}") from error
    backend: Backend = module.backend(settings)
    return backend
