"""The table of routes in tests/harness/route_table.py is complete, and every route declares its scope."""

import re

import pytest
from starlette.routing import Route

from tailrace.gateway.app import ROUTES
from tailrace.gateway.auth.scopes import NEEDS
from tailrace.gateway.turns.request_body import RESERVED_NAMES
from tailrace.proto.ids import is_session_name
from tests.harness.route_table import ROWS


@pytest.mark.rule("S1")
def test_every_route_has_a_row() -> None:
    """The tests of tenant isolation use this table."""
    methods = {(method, route.path) for route in ROUTES for method in route.methods or () if method != "HEAD"}
    assert methods == set(ROWS)


@pytest.mark.rule("S9")
def test_no_route_matches_several_path_segments() -> None:
    """A parameter that matches slashes could be used for path traversal."""
    assert [route for route in ROUTES if type(route) is not Route] == []
    assert [route.path for route in ROUTES if re.search(r"{\w+:", route.path)] == []


def test_every_route_declares_its_scope() -> None:
    """gateway/auth/scopes.py has a row for each route, and no other."""
    methods = {(method, route.path) for route in ROUTES for method in route.methods or () if method != "HEAD"}
    assert set(NEEDS) == methods
    assert {route for route, need in NEEDS.items() if need == "public"} == {
        route for route, row in ROWS.items() if row.is_public
    }


@pytest.mark.rule("S7")
def test_scope_read_changes_nothing() -> None:
    """DELETE, PATCH and PUT need `manage`. A POST that only needs `read` is listed here with its reason."""
    readable_posts = {
        ("POST", "/v1/turns/{turn}/tickets"),  # a link for a turn that its creator can read
        ("POST", "/v1/login"),  # the same key, in another form
        ("POST", "/v1/login/refresh"),
    }
    assert {need for (method, _), need in NEEDS.items() if method in ("DELETE", "PATCH", "PUT")} == {"manage", "admin"}
    assert {need for (method, _), need in NEEDS.items() if method == "GET"} == {"read", "public", "operate", "admin"}
    assert {route for route, need in NEEDS.items() if route[0] == "POST" and need == "read"} == readable_posts


def test_client_chosen_names_do_not_shadow_routes() -> None:
    """A client cannot choose a name that is a fixed segment of another route at the same position.

    A session named `stats` could be created and not read, because `/v1/sessions/stats` is another route.
    """
    paths = [route.path.split("/") for route in ROUTES]
    taken = {
        other[index]
        for path in paths
        for index, segment in enumerate(path)
        if segment in ("{session}", "{chat}", "{project}")
        for other in paths
        if other[:index] == path[:index] and len(other) > index and not other[index].startswith("{")
    }
    assert taken == RESERVED_NAMES
    assert all(is_session_name(name) for name in taken)


def test_path_parameters_have_their_kind_in_the_table() -> None:
    """Without a kind, a route would count as open to every tenant."""
    # Those of operators are open to no tenant.
    named = {route: tuple(re.findall(r"{(\w+)}", route[1])) for route in ROWS if NEEDS[route] != "admin"}
    assert named == {route: (row.names,) if row.names else () for route, row in ROWS.items() if route in named}
