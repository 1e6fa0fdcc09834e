"""Fixtures of the tests of client protocols: those of the integration tests."""

from tests.integration.conftest import (
    claude,
    gateway,
    generator,
    lone_gateway,
    new_gateway,
    persistence,
    second_gateway,
    session_gateway,
    shared_gateway,
    system,
    system_log,
)

__all__ = ["claude", "gateway", "generator", "lone_gateway", "new_gateway", "persistence", "second_gateway"]
__all__ += ["session_gateway", "shared_gateway", "system", "system_log"]
