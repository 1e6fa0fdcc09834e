"""The id of the last received event, from the header `Last-Event-ID` or from the query names that libraries use."""

import re

from starlette.requests import HTTPConnection

# The names in the URL of clients that reconnect and cannot send the header: event-source-polyfill,
# reconnecting-eventsource and better-sse; Mercure; Mercure before 0.11.
QUERY_NAMES = ("lastEventId", "lastEventID", "Last-Event-ID")
# The id of an event that is not the last one of its entry.
PART = re.compile(r"([0-9]{1,19})-([0-9]{1,9})", re.ASCII)
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


def split_part(last_id: str) -> tuple[str, int]:
    """Splits the id `SEQ-N` of event N, from 0, of an entry's events: returns `SEQ`, and how many of them it covers.

    The count is 0 for the id of a whole entry, and for any other text.
    """
    found = PART.fullmatch(last_id)
    return (last_id, 0) if found is None else (found[1], int(found[2]) + 1)
