"""The kind of backend `bedrock`. Imports no library of the backend."""

from tailrace.generators.backends.registry import BackendKind

BACKEND = BackendKind("bedrock", "tailrace.features.bedrock.backend")
