"""The table of backends. A backend's module is imported when its name is used, so that its library is optional."""

from importlib import import_module

from tailrace.generators.backends import Backend
from tailrace.generators.settings import Settings
from tailrace.proto.errors import SettingsInvalid

# Name to module; the module's function `backend` opens it from the settings.
MODULES = {
    "claude": "anthropic_api",  # Anthropic's own API
    "bedrock": "bedrock",  # Claude in Amazon Bedrock
    "claude_code": "claude_code",  # Claude Code's CLI, one process a call
    "litellm": "litellm",  # other providers, from a venv of its own
    "vertex": "vertex",  # Claude on Google's Vertex AI
}
NAMES = tuple(MODULES)

# How to install a backend's library, where that is not `make setup`.
INSTALLED_BY = {"litellm": "make litellm, and start it from .venv-litellm"}


def require_known(name: str) -> None:
    """Raises SettingsInvalid if there is no backend `name`."""
    if name not in NAMES:
        raise SettingsInvalid(f"TAILRACE_BACKENDS: {name!r} is not one of {', '.join(NAMES)}")


def open_backend(name: str, settings: Settings) -> Backend:
    """Opens a backend. Raises SettingsInvalid if it does not exist, or a library or setting of it is missing."""
    require_known(name)
    try:
        module = import_module(f"tailrace.generators.backends.{MODULES[name]}")
    except ModuleNotFoundError as error:
        make = INSTALLED_BY.get(name, "make setup")
        missing = f"{error.name} is not installed: {make}, or pip install 'tailrace[{name}]'"
        raise SettingsInvalid(f"TAILRACE_BACKENDS: {name} cannot be used: {missing}") from error
    backend: Backend = module.backend(settings)
    return backend
