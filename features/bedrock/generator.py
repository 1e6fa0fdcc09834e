"""The kind of backend `bedrock`. Imports none of its libraries."""

from tailrace.generators.backends.registry import BackendKind

BACKEND = BackendKind("bedrock", "tailrace.features.bedrock.backend")
