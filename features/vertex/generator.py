"""The kind of backend `vertex`. Imports no library of the backend."""

from tailrace.generators.backends.registry import BackendKind

BACKEND = BackendKind("vertex", "tailrace.features.vertex.backend")
