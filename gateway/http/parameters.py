"""Query parameters and headers that several routes have. Those of a single route are in its module."""

from tailrace.gateway.http.last_event_id import QUERY_NAMES
from tailrace.gateway.http.route import header, query

KEY_SCHEMA = {"type": "string", "pattern": "^[!-~]{1,200}$"}
KEY = header(
    "Idempotency-Key",
    "A repeated request with the same key and body gets the same turn; `auto` derives the key from the body.",
    **KEY_SCHEMA,
)
KEY_OF_RESOURCE = header(
    "Idempotency-Key",
    "A repeated request with the same key and body gets the same session or project. `auto` is refused.",
    **KEY_SCHEMA,
)
SESSION = header("X-Session-ID", "The session of the turn; a new name creates it.")
PROJECT = header("X-Project-ID", "The project of the session.")

LAST_RECEIVED = "The `id:` of the last received event."
SAME_AS_LAST_RECEIVED = (
    "The same as `Last-Event-ID`, which counts first. So do `lastEventId`, `lastEventID` and `Last-Event-ID` in the "
    "query, which polyfills of EventSource send."
)
CURSOR_SCHEMA = {"type": "string", "pattern": "^[0-9]{1,19}$"}
CURSOR = query("after", SAME_AS_LAST_RECEIVED, **CURSOR_SCHEMA)
LAST_EVENT_ID_IN_QUERY = tuple(
    query(name, "The same as `Last-Event-ID`.")._replace(is_spelling=True) for name in QUERY_NAMES
)
RESUMING = (header("Last-Event-ID", LAST_RECEIVED, **CURSOR_SCHEMA), CURSOR, *LAST_EVENT_ID_IN_QUERY)
GONE = {204: "The cursor is at the end: there are no more events."}

AFTER = query("after", "The `next` of the previous page.")
LIMIT = query("limit", "The maximum number of items in the page.", type="integer", minimum=1, maximum=200)
PAGE = (AFTER, LIMIT, query("page", "Only 1: pages are addressed by `after`.", enum=["1"]))
NUMBERED_PAGE = (
    AFTER,
    LIMIT,
    query("page", "The number of the page, instead of `after`.", type="integer", minimum=1),
    query("per_page", "The same as `limit`.", type="integer", minimum=1, maximum=200),
)
OF_USER = query("user", "Only items of this user.")
FROM = query("from", "The first day (UTC).", type="string", format="date")
TO = query("to", "The last day (UTC).", type="string", format="date")
AFTER_ITEM = query("after", "The id of the last received item.")
ORDER = query("order", "The order of the items; `desc` by default.", enum=["asc", "desc"])

# Parameters that client libraries add by themselves.
AZURE = (query("api-version", "Sent by clients of Azure OpenAI. It has no effect."),)
BETA = query("beta", "Sent by the SDKs of Anthropic and OpenAI. It has no effect.")
SENT_BY_SDKS = (BETA, *AZURE)
