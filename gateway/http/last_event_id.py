"""The id of the last received event, from the header `Last-Event-ID` or from the query names that libraries use."""

from starlette.requests import HTTPConnection

# What the clients that cannot send the header add to the URL when they reconnect: event-source-polyfill,
# reconnecting-eventsource and better-sse; Mercure; Mercure before 0.11.
QUERY_NAMES = ("lastEventId", "lastEventID", "Last-Event-ID")


def last_event_id(request: HTTPConnection) -> str:
    """Returns the id of the last event that a client which reconnects has received; "" if it names none.

    The header counts before the query. Of a repeated query name the last value counts: libraries append theirs.
    """
    if header := request.headers.get("last-event-id"):
        return header
    if not request.scope["query_string"]:
        return ""
    return next((value for name in QUERY_NAMES if (value := request.query_params.get(name))), "")


def cursor_text(request: HTTPConnection) -> str:
    """Returns the cursor as the client sent it; "" if it sent none.

    That of a reconnect, `last_event_id`, counts before `?after=`: the page's own URL keeps its first cursor.
    """
    return last_event_id(request) or request.query_params.get("after", "")
