"""The first bytes of a resumed stream for EventSource in WebKit (Safari), which keeps a part of an event over a cut.

At the end of a connection, an EventSource discards an event that is not complete (WHATWG HTML, section 9.2.6). That of
WebKit does so only at a clean end (`EventSource::didFail` in its EventSource.cpp). After a cut, it joins the part with
the first event of the next connection. The page cannot parse the data of both, and loses this event.
"""

from starlette.datastructures import Headers
from starlette.types import Scope

from tailrace.gateway.http.retry_later import is_resuming_reader

# The comment ends a partial line. The blank line ends the event, under a name to which no page listens.
DISCARD = b":\nevent: discard\nid: %s\n\n"


def discard_partial_event(scope: Scope) -> bytes:
    """Returns what makes WebKit's EventSource discard a part of an event; nothing for a request of another client.

    The cursor stays the same. Some clients dispatch an empty event at a blank line, such as fetch-event-source, which
    sends no Cache-Control.
    """
    headers = Headers(scope=scope)
    agent = headers.get("user-agent", "")
    is_webkit = "AppleWebKit" in agent and "Chrome" not in agent and headers.get("cache-control") == "no-cache"
    return DISCARD % headers["last-event-id"].encode("latin-1") if is_webkit and is_resuming_reader(scope) else b""
