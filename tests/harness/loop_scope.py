"""A pytest plugin: the event loop's factory has the scope of the session, so that shared servers are started once.

pytest-asyncio makes the factory a parameter of each asynchronous test and gives it the scope of that test. The end of
the test then also ends the loop of the session, and with it nats-server, PostgreSQL and the gateway that tests share.
"""

import pytest
from _pytest.scope import Scope

FACTORY = "_asyncio_loop_factory"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Changes the scope after pytest has put the tests in order, which would also depend on it."""
    for item in items:
        scopes = getattr(getattr(item, "callspec", None), "_arg2scope", {})
        if FACTORY in scopes:
            scopes[FACTORY] = Scope.Session
