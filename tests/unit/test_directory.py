"""The list of routes at `GET /`."""

from tailrace.gateway.app import ROUTES
from tailrace.gateway.resources.index import endpoints_of
from tests.harness.route_table import ROWS


def test_index_lists_every_route_with_its_methods() -> None:
    """One line for each path, and no other lines."""
    listed = endpoints_of(ROUTES)
    assert {(method, path) for path, methods in listed.items() for method in methods} == set(ROWS)
    assert listed["/v1/sessions/{session}"] == ["GET", "PATCH", "DELETE"]
