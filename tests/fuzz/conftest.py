"""Fixtures of the fuzz tests: those of tests/integration."""

from tests.integration.conftest import claude, generator, lone_gateway, new_gateway, persistence, system

__all__ = ["claude", "generator", "lone_gateway", "new_gateway", "persistence", "system"]
