"""The routes of tickets: the feature adds them, and the core has none."""

from tailrace.features.gateway import ROUTES
from tailrace.features.tickets.tickets import EVENTS, PARAMETER
from tailrace.gateway import app


def test_only_the_events_of_a_turn_take_a_ticket() -> None:
    """And their cursor may begin with the proof of a single-use ticket. Without the feature no route takes one."""
    (events,) = [route for route in ROUTES if PARAMETER in route.query_names]
    assert (events.method, EVENTS.fullmatch(events.path) is not None) == ("GET", True)
    (cursor,) = [one for one in events.parameters if one.name == "Last-Event-ID" and one.place == "header"]
    assert "[A-Za-z0-9_-]{22}" in cursor.documented["schema"]["pattern"]
    assert not [route.path for route in app.routes_of(()) if PARAMETER in route.query_names or "ticket" in route.path]
