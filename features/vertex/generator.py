"""The kind of backend `vertex`. Imports none of its libraries."""

from tailrace.generators.backends.registry import BackendKind

BACKEND = BackendKind("vertex", "tailrace.features.vertex.backend")
