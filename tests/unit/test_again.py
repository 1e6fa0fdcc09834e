"""Who is sent away, and comes back by itself: how it is known, and when it is told to come. No server."""

import pytest
from starlette.types import Scope

from tailrace.gateway import error_responses
from tailrace.gateway.http.retry_later import RETRY_S_MAX, RetryLater, is_resuming_reader

EVENT_SOURCE = {"accept": "text/event-stream", "last-event-id": "7"}


def scope(method: str, headers: dict[str, str]) -> Scope:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": "/v1/turns/x/events", "headers": raw}


@pytest.mark.parametrize(
    ("method", "headers", "is_back"),
    [
        ("GET", EVENT_SOURCE, True),
        ("GET", {"accept": "text/event-stream, */*", "last-event-id": "7"}, True),
        ("GET", {"accept": "text/event-stream"}, False),
        ("GET", {"accept": "text/event-stream", "last-event-id": ""}, False),
        ("GET", {"accept": "*/*", "last-event-id": "7"}, False),
        ("GET", {"last-event-id": "7"}, False),
        ("POST", EVENT_SOURCE, False),
        ("HEAD", EVENT_SOURCE, False),
    ],
)
def test_an_event_source_that_is_resuming_reader_is_known_by_what_it_sends(
    method: str, headers: dict[str, str], *, is_back: bool
) -> None:
    """Whoever looks at a status, and a new reader, whose page can say what is wrong, are told it."""
    asked = scope(method, headers)
    assert is_resuming_reader(asked) is is_back
    told = error_responses.response("server_busy", "come again", retry_after_s=RETRY_S_MAX, scope=asked)
    assert told.status_code == (200 if is_back else 503)


@pytest.mark.parametrize("code", ["credential_invalid", "turn_not_found", "cursor_invalid", "budget_exceeded"])
def test_what_will_not_be_better_soon_is_said_to_an_event_source_too(code: str) -> None:
    """It would ask for ever."""
    assert error_responses.response(code, "no", scope=scope("GET", EVENT_SOURCE)).status_code >= 400


def test_each_is_told_a_moment_of_its_own() -> None:
    """And no event: some clients take a blank line for one."""
    told = [bytes(RetryLater(3.0).body) for _ in range(50)]
    assert {body.count(b"\n") for body in told} == {1}
    waits = {int(body.removeprefix(b"retry: ")) for body in told}
    assert len(waits) > 10
    assert 3000 <= min(waits) <= max(waits) <= 4000
