"""Fixtures of the tests of features: those of the integration tests, and stores of both databases."""

from tests.integration.conftest import (
    claude,
    gateway,
    generator,
    lone_gateway,
    new_gateway,
    own,
    own_claude,
    own_gateway,
    persistence,
    second_gateway,
    session_gateway,
    shared_gateway,
    shared_keys,
    system,
    system_log,
)
from tests.unit.store.conftest import file_store, path, postgresql_store, store

__all__ = ["claude", "file_store", "gateway", "generator", "lone_gateway", "new_gateway", "own", "own_claude"]
__all__ += [
    "own_gateway",
    "path",
    "persistence",
    "postgresql_store",
    "second_gateway",
    "session_gateway",
    "shared_gateway",
    "shared_keys",
    "store",
    "system",
    "system_log",
]
