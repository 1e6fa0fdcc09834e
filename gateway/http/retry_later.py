"""When whoever is sent away is to come again, and how an EventSource is told so. It sends nobody away.

To an EventSource every status but 200 is final: one that comes back, and meets a crowd or a log
that will be gone in a second, would lose the rest of its turn. It is known by what it sends, the last id that it has
seen, and is answered in its own words: a stream that says when to come, and breaks off (ADR 13).
"""

import random

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tailrace.gateway.streaming import sse

AGAIN_S_MIN, AGAIN_S_MAX = 1, 10
# Those who were told the same second come within one, and not at its beginning.
SPREAD_S = 1.0


def again_s() -> float:
    """When somebody who is sent away is to come back: not when the others do."""
    return random.randint(AGAIN_S_MIN, AGAIN_S_MAX)  # noqa: S311  # nobody gains anything by guessing it


def comes_back(scope: Scope) -> bool:
    """Whether a reader of an event stream asks for what follows the last id that it has seen."""
    headers = Headers(scope=scope)
    is_reader = scope["method"] == "GET" and sse.MEDIA_TYPE in headers.get("accept", "")
    return is_reader and bool(headers.get("last-event-id"))


class ComeAgain(Response):
    """200, and nothing but when to come: in so many seconds, or a little later."""

    media_type = sse.MEDIA_TYPE

    def __init__(self, wait_s: float) -> None:
        wait_ms = round(1000 * random.uniform(wait_s, wait_s + SPREAD_S))  # noqa: S311  # as above
        super().__init__(sse.retry(wait_ms), headers=sse.HEADERS)
        # The last chunk is missing, so that nobody takes it for an answer that has ended.
        del self.headers["content-length"]

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
