"""Rejections that are temporary: `Retry-After`, and for an EventSource a stream that makes it reconnect later.

To an EventSource every status but 200 is final: one that resumes while the gateway is busy, or the log is unavailable
for a second, would lose the rest of its turn. It is recognised by its `Last-Event-ID` and receives a stream that sets
its reconnection delay and is cut (ADR 13).
"""

import random

from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tailrace.gateway.http import sse
from tailrace.gateway.http.last_event_id import last_event_id
from tailrace.gateway.http.media_type import accept_header

RETRY_S_MIN, RETRY_S_MAX = 1, 10
# Clients that were rejected in the same second return spread over one second.
SPREAD_S = 1.0


def retry_delay_s() -> float:
    """Returns a random delay, so that clients that are rejected together do not return together."""
    return random.randint(RETRY_S_MIN, RETRY_S_MAX)  # noqa: S311  # no secret


def is_resuming_reader(scope: Scope) -> bool:
    """Returns whether an EventSource sends the request to resume after the last id that it has received."""
    request = HTTPConnection(scope)
    is_reader = scope["method"] == "GET" and sse.MEDIA_TYPE in accept_header(request.headers)
    # TanStack AI repeats the POST that began its run, or the GET that joined it.
    is_reader = is_reader or "x-run-id" in request.headers or "runId" in request.query_params
    return is_reader and bool(last_event_id(request))


class RetryLater(Response):
    """A 200 with nothing but the reconnection delay: `wait_s` seconds, or a little more."""

    media_type = sse.MEDIA_TYPE

    def __init__(self, wait_s: float) -> None:
        wait_ms = round(1000 * random.uniform(wait_s, wait_s + SPREAD_S))  # noqa: S311  # no secret
        super().__init__(sse.retry(wait_ms), headers=sse.HEADERS)
        # Without a last chunk, so that it does not look like a stream that has ended.
        del self.headers["content-length"]

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
