"""The backends that there are, a line each. One is imported when it is named: no other's library has to be there."""

from importlib import import_module

from tailrace.generators.backends import Backend
from tailrace.generators.settings import Settings
from tailrace.proto.errors import SettingsInvalid

# Name to module; the module's function `backend` opens it with the settings.
MODULES = {
    "claude": "anthropic_api",  # Anthropic's own API
    "bedrock": "bedrock",  # Claude in Amazon Bedrock
    "claude_code": "claude_code",  # Claude Code's CLI, a process for each call
    "litellm": "litellm",  # any other provider, from a venv of its own
    "vertex": "vertex",  # Claude on Google's Vertex AI
}
NAMES = tuple(MODULES)

# A call of theirs does more than answer: it is made once at a time.
ACTING = frozenset({"claude_code"})

# Where that is not what all the others are installed by.
INSTALLED_BY = {"litellm": "make litellm, and start it from .venv-litellm"}


def require_known(name: str) -> None:
    """Raises SettingsInvalid for a name that there is not."""
    if name not in NAMES:
        raise SettingsInvalid(f"TAILRACE_BACKENDS: {name!r} is not one of {', '.join(NAMES)}")


def open_backend(name: str, settings: Settings) -> Backend:
    """Raises SettingsInvalid for a name that there is not, and for what the backend misses."""
    require_known(name)
    try:
        module = import_module(f"tailrace.generators.backends.{MODULES[name]}")
    except ModuleNotFoundError as error:
        make = INSTALLED_BY.get(name, "make setup")
        missing = f"{error.name} is not installed: {make}, or pip install 'tailrace[{name}]'"
        raise SettingsInvalid(f"TAILRACE_BACKENDS: {name} needs more than there is: {missing}") from error
    backend: Backend = module.backend(settings)
    return backend
