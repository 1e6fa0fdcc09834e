"""The table of routes is whole: whoever adds a route says in it what the route is to strangers."""

import re

import pytest
from starlette.routing import Route

from tailrace.gateway.app import ROUTES
from tailrace.gateway.auth.scopes import NEEDS
from tailrace.gateway.turns.request_body import PATHS
from tailrace.proto.ids import is_session_name
from tests.routes import ROWS


@pytest.mark.rule("S1")
def test_every_route_has_a_row() -> None:
    """The tests of tenants walk this table, so a route that is not in it would be tested by nobody."""
    methods = {(method, route.path) for route in ROUTES for method in route.methods or () if method != "HEAD"}
    assert methods == set(ROWS)


@pytest.mark.rule("S9")
def test_no_route_serves_a_folder() -> None:
    """Each is a path with names between its slashes: none takes what is left of a path, which could climb."""
    assert [route for route in ROUTES if type(route) is not Route] == []
    assert [route.path for route in ROUTES if re.search(r"{\w+:", route.path)] == []


def test_every_route_says_who_may() -> None:
    """A route without a row in gateway/auth/scopes.py is refused to everybody; one that is gone has none."""
    methods = {(method, route.path) for route in ROUTES for method in route.methods or () if method != "HEAD"}
    assert set(NEEDS) == methods
    assert {route for route, need in NEEDS.items() if need == "public"} == {
        route for route, row in ROWS.items() if row.is_public
    }


@pytest.mark.rule("S7")
def test_who_may_only_look_changes_nothing() -> None:
    """What takes away needs `manage`, and `read` is enough for nothing but a look; a POST that is, says why here."""
    looks = {
        ("POST", "/v1/turns/{turn}/tickets"),  # a link for who may look, to what its maker may look at
        ("POST", "/v1/login"),  # the same key, in another form
        ("POST", "/v1/login/refresh"),
    }
    assert {need for (method, _), need in NEEDS.items() if method in ("DELETE", "PATCH", "PUT")} == {"manage"}
    assert {need for (method, _), need in NEEDS.items() if method == "GET"} == {"read", "public"}
    assert {route for route, need in NEEDS.items() if route[0] == "POST" and need == "read"} == looks


def test_no_name_that_a_client_gives_is_a_route() -> None:
    """A client may not choose a name that another route has at the same place of its path.

    A session called `stats` could be asked and not looked at: that path tells something else.
    """
    paths = [route.path.split("/") for route in ROUTES]
    taken = {
        other[place]
        for path in paths
        for place, step in enumerate(path)
        if step in ("{session}", "{chat}", "{project}")
        for other in paths
        if other[:place] == path[:place] and len(other) > place and not other[place].startswith("{")
    }
    assert taken == PATHS
    assert all(is_session_name(name) for name in taken)


def test_every_path_that_names_something_has_its_kind_in_its_row() -> None:
    """A path with a parameter and no kind would be taken for one that every tenant may ask."""
    named = {(method, path): tuple(re.findall(r"{(\w+)}", path)) for method, path in ROWS}
    assert named == {route: (row.names,) if row.names else () for route, row in ROWS.items()}
