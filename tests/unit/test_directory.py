"""What the directory lists."""

from tailrace.gateway.app import ROUTES
from tailrace.gateway.resources.index import endpoints_of
from tests.routes import ROWS


def test_the_directory_lists_every_route_with_its_methods() -> None:
    """One line a path, with all that may be done there; nothing that is not there."""
    listed = endpoints_of(ROUTES)
    assert {(method, path) for path, methods in listed.items() for method in methods} == set(ROWS)
    assert listed["/v1/sessions/{session}"] == ["GET", "PATCH", "DELETE"]
