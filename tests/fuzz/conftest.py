"""The ground for what nobody would send: the running house, with the nouns of tests/integration."""

from tests.integration.conftest import claude, generator, house, lone_gateway, new_gateway, persistence

__all__ = ["claude", "generator", "house", "lone_gateway", "new_gateway", "persistence"]
