"""The id of the last received event, from the header `Last-Event-ID` or from the query names that libraries use."""

from starlette.requests import HTTPConnection

# The names in the URL of clients that reconnect and cannot send the header: event-source-polyfill,
# reconnecting-eventsource and better-sse; Mercure; Mercure before 0.11.
QUERY_NAMES = ("lastEventId", "lastEventID", "Last-Event-ID")
AFTER = "after"
"""The query name of the cursor at which a client begins. It stays in the URL with which a page reconnects."""


def last_event_id(request: HTTPConnection, *more_names: str) -> str:
    """Returns the id of the last event that a reconnecting client has received; "" if it names none.

    The header takes precedence over the query, in which `more_names` come last. Of a repeated query name the last value
    counts: libraries append theirs.
    """
    if header := request.headers.get("last-event-id"):
        return header
    if not request.scope["query_string"]:
        return ""
    return next((value for name in (*QUERY_NAMES, *more_names) if (value := request.query_params.get(name))), "")
