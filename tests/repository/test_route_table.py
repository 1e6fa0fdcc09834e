"""The rows of the routes: their scopes and paths, and the requests of tests/harness/route_table.py."""

import re
from typing import Any

import pytest

from tailrace.features.gateway import ROUTES
from tailrace.gateway.http.route import TURNS, Route
from tailrace.gateway.turns.request_body import RESERVED_NAMES
from tailrace.proto.ids import is_session_name
from tests.harness.route_table import BODIES, ENDLESS, EVERYBODYS, QUERIES

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
# The routes that need no credential. Each serves nothing of a tenant; /v1/logout only deletes the caller's cookie.
PUBLIC = {
    *(("GET", path) for path in ("/", "/turns/{turn}", "/page/{file}", "/docs", "/openapi.json")),
    *(("GET", path) for path in ("/health", "/healthz", "/readyz", "/metrics")),
    *(("GET", path) for path in ("/admin", "/admin/page.js", "/admin/page.css")),
    *(("GET", path) for path in ("/ops", "/ops/page.js", "/ops/page.css", "/guides", "/guides/{guide}")),
    ("POST", "/v1/logout"),
}


@pytest.mark.rule("S1")
def test_each_request_of_the_table_is_one_of_a_route() -> None:
    """The tests of tenant isolation use this table."""
    routes = [(route.method, route.path) for route in ROUTES]
    assert len(set(routes)) == len(routes)
    assert (BODIES.keys() | QUERIES.keys()) - set(routes) == set()
    assert (EVERYBODYS | ENDLESS) - {path for _, path in routes} == set()


@pytest.mark.rule("S9")
def test_no_route_matches_several_path_segments() -> None:
    """A parameter that matches slashes could be used for path traversal."""
    assert [route.path for route in ROUTES if re.search(r"{\w+:", route.path)] == []


def test_only_these_routes_are_public() -> None:
    assert {(route.method, route.path) for route in ROUTES if route.need == "public"} == PUBLIC


@pytest.mark.rule("S7")
def test_scope_read_changes_nothing() -> None:
    """DELETE, PATCH and PUT need `manage`. A POST that only needs `read` is listed here with its reason."""
    readable_posts = {
        ("POST", "/v1/turns/{turn}/tickets"),  # a link for a turn that its creator can read
        ("POST", "/api/copilotkit/agent/{agent}/connect"),  # reads a thread: CopilotKit names it in a body
        ("POST", "/v1/login"),  # the same key, in another form
        ("POST", "/v1/login/refresh"),
    }
    needs = {method: {route.need for route in ROUTES if route.method == method} for method in METHODS}
    assert needs["DELETE"] | needs["PATCH"] | needs["PUT"] == {"manage", "admin"}
    assert needs["GET"] == {"read", "public", "operate", "admin"}
    assert {
        (route.method, route.path) for route in ROUTES if route.method == "POST" and route.need == "read"
    } == readable_posts


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


def test_a_path_names_one_resource() -> None:
    """The tests of tenant isolation take one kind of resource a route. Routes of operators are open to no tenant.

    A call is one of its session, and an agent is nothing stored.
    """
    counts = {route.path: len(re.findall(r"{\w+}", route.path)) for route in ROUTES if route.need != "admin"}
    assert {path for path, count in counts.items() if count > 1} == {
        "/v1/sessions/{session}/calls/{call}",
        "/api/copilotkit/agent/{agent}/stop/{thread}",
    }


def test_a_route_without_a_scope_does_not_import() -> None:
    """A module with such a row raises TypeError when it is imported."""
    row: Any = Route
    with pytest.raises(TypeError, match="need"):
        row("GET", "/v1/secrets", print, section=TURNS)
