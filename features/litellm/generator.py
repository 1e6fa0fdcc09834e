"""The kind of backend `litellm`. Imports none of its libraries."""

from tailrace.generators.backends.registry import BackendKind

BACKEND = BackendKind(
    "litellm", "tailrace.features.litellm.backend", install="make litellm, and start it from .venv-litellm"
)
