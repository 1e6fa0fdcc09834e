"""Responses to a resuming EventSource that is refused for the moment."""

import pytest
from starlette.types import Scope

from tailrace.gateway.http import error_responses
from tailrace.gateway.http.retry_later import RETRY_S_MAX, RetryLater, is_resuming_reader

EVENT_SOURCE = {"accept": "text/event-stream", "last-event-id": "7"}


def scope(method: str, headers: dict[str, str], query: bytes = b"") -> Scope:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": "/v1/turns/x/events", "headers": raw, "query_string": query}


@pytest.mark.parametrize(
    ("method", "headers", "is_back"),
    [
        ("GET", EVENT_SOURCE, True),
        ("GET", {"accept": "text/event-stream, */*", "last-event-id": "7"}, True),
        ("GET", {"accept": "Text/Event-Stream", "last-event-id": "7"}, True),
        ("GET", {"accept": "text/event-stream"}, False),
        ("GET", {"accept": "text/event-stream", "last-event-id": ""}, False),
        ("GET", {"accept": "*/*", "last-event-id": "7"}, False),
        ("POST", EVENT_SOURCE, False),
        # TanStack AI repeats the POST of its run.
        ("POST", {"x-run-id": "run-1", "last-event-id": "7-1"}, True),
        ("POST", {"x-run-id": "run-1"}, False),
    ],
)
def test_a_resuming_event_source_is_recognised_by_its_headers(
    method: str, headers: dict[str, str], *, is_back: bool
) -> None:
    """Other clients and new readers get the status."""
    request_scope = scope(method, headers)
    assert is_resuming_reader(request_scope) is is_back
    response = error_responses.response("server_busy", "come again", retry_after_s=RETRY_S_MAX, scope=request_scope)
    assert response.status_code == (200 if is_back else 503)


@pytest.mark.parametrize("query", [b"lastEventId=7", b"a=b&Last-Event-ID=7", b"lastEventID=7"])
def test_a_resuming_polyfill_is_recognised_by_its_query(query: bytes) -> None:
    """To it, too, every status but 200 is final. A page's own `?after=` may be its first request."""
    assert is_resuming_reader(scope("GET", {"accept": "text/event-stream"}, query))
    # TanStack AI has joined a run.
    assert is_resuming_reader(scope("GET", {"last-event-id": "7"}, b"offset=-1&runId=run-1"))
    assert not is_resuming_reader(scope("GET", {"accept": "text/event-stream"}, b"after=7&lastEventId="))


@pytest.mark.parametrize("code", ["credential_invalid", "turn_not_found", "cursor_invalid", "budget_exceeded"])
def test_an_error_that_a_retry_cannot_repair_is_sent_to_an_event_source(code: str) -> None:
    """It would retry for ever."""
    assert error_responses.response(code, "no", scope=scope("GET", EVENT_SOURCE)).status_code >= 400


def test_reconnection_delays_differ() -> None:
    """And there is no event: some clients take a blank line for one."""
    bodies = [bytes(RetryLater(3.0).body) for _ in range(50)]
    assert {body.count(b"\n") for body in bodies} == {1}
    waits = {int(body.removeprefix(b"retry: ")) for body in bodies}
    assert len(waits) > 10
    assert 3000 <= min(waits) <= max(waits) <= 4000
