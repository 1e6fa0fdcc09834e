"""The table of operations: for each route its bodies, parameters and statuses.

The OpenAPI document is made of it, and the gateway refuses every query parameter that a route does not have here.
A test fails on a route without a row. Descriptions come from the endpoints' docstrings, schemas from the Structs. A
route of another protocol links to that protocol's reference.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tailrace.gateway.clients.ai_sdk.request import UIChatRequest
from tailrace.gateway.clients.ai_sdk.routes import StoppedTurn
from tailrace.gateway.clients.anthropic.batch_routes import NewMessageBatch
from tailrace.gateway.clients.anthropic.count_tokens import CountTokensRequest
from tailrace.gateway.clients.anthropic.request import MessagesRequest
from tailrace.gateway.clients.native.routes import AcceptedTurn
from tailrace.gateway.clients.native.session_events import CURSOR_TEXT
from tailrace.gateway.clients.openai.batch_routes import NewFileBatch
from tailrace.gateway.clients.openai.chat_request import ChatCompletionRequest
from tailrace.gateway.clients.openai.responses_request import ResponseRequest
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.gateway.clients.tutorials.request import (
    AIChatRequest,
    ChatRequest,
    ChatStreamRequest,
    StartJobRequest,
)
from tailrace.gateway.clients.tutorials.routes import StartedJob
from tailrace.gateway.http.form import Form
from tailrace.gateway.http.last_event_id import QUERY_NAMES as LAST_EVENT_ID
from tailrace.gateway.models.card import ModelCard, ModelPage, ModelSheets
from tailrace.gateway.ops.overview import Overview
from tailrace.gateway.page.index import Directory
from tailrace.gateway.prompts.templates import Prompt as PromptTemplate
from tailrace.gateway.resources.admin import (
    AuditList,
    CreatedKey,
    KeyList,
    KeyRecord,
    LimitsBody,
    NewKeyBody,
    RotateBody,
    TenantBody,
    TenantList,
)
from tailrace.gateway.resources.batch_body import NewBatch
from tailrace.gateway.resources.batches import AcceptedBatch, BatchList, BatchRecord
from tailrace.gateway.resources.deletion import DeletedObject
from tailrace.gateway.resources.erasure import SECONDS_MAX, ErasureReport
from tailrace.gateway.resources.health import Health
from tailrace.gateway.resources.login import LoggedIn
from tailrace.gateway.resources.projects import NewProjectBody, Project, ProjectList
from tailrace.gateway.resources.prompts import PromptList
from tailrace.gateway.resources.running import CancelledSession, TurnList
from tailrace.gateway.resources.sessions import BranchList, ChangeBody, NewSessionBody, SessionList, SessionStats
from tailrace.gateway.resources.tickets import MadeTicket, NewTicket
from tailrace.gateway.resources.usage import UsageList
from tailrace.gateway.streaming.pacing import PACE
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.gateway.turns.timeline import Timeline
from tailrace.proto.model_records import TokenCount
from tailrace.proto.records import SessionRecord, TurnPage, TurnRecord
from tailrace.proto.resources import USAGE_BY

SSE = "text/event-stream"
JSON_LINES = "application/x-ndjson"
OPENAI_CHAT = "https://platform.openai.com/docs/api-reference/chat"
FILES = "https://platform.openai.com/docs/api-reference/files"
OPENAI_BATCH = "https://platform.openai.com/docs/api-reference/batch"
OPENAI_RESPONSES = "https://platform.openai.com/docs/api-reference/responses"
MESSAGE_BATCHES = "https://docs.anthropic.com/en/api/creating-message-batches"
ANTHROPIC = "https://docs.anthropic.com/en/api/messages"
AI_SDK = "https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol"

Json = dict[str, Any]


class Operation(NamedTuple):
    """A route in the document: all except its path and its docstring."""

    tag: str
    body: Any = None
    """The Struct of the JSON body; `Form` for a form with a file."""
    response: Any = None
    """The Struct of the JSON response; `Any` for an object without a Struct, `list` for a list."""
    status: int = 200
    streams: str = ""
    """The media type of a streamed response."""
    parameters: tuple[str, ...] = ()
    statuses: Mapping[int, str] = {}
    """Further statuses that are not errors."""
    uses_cookie: bool = False
    """Whether the credential is the login cookie instead of a key."""
    reference: str = ""
    """The URL of the protocol's reference."""

    @property
    def kinds(self) -> set[Any]:
        return {kind for kind in (self.body, self.response) if kind not in (None, Any, list, Form)}


def _query(name: str, description: str, **schema: Any) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string"} | schema}


def _header(name: str, description: str, **schema: Any) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"} | schema}


PACE_PATTERN = f"^({PACE.pattern})$"
KEY = {"type": "string", "pattern": "^[!-~]{1,200}$"}
CURSOR = {"type": "string", "pattern": "^[0-9]{1,19}$"}
# The ids of the stream of a single-use ticket begin with a proof (TokenSigner.proof).
PROVEN_CURSOR = {"type": "string", "pattern": r"^([A-Za-z0-9_-]{22}\.)?[0-9]{1,19}$"}
AFTER = (
    "The same as `Last-Event-ID`, which counts first. So do `lastEventId`, `lastEventID` and `Last-Event-ID` in the "
    "query, which polyfills of EventSource send."
)
POSITION = {"type": "string", "pattern": f"^({CURSOR_TEXT.pattern})$"}
PARAMETERS: dict[str, Json] = {
    "key": _header(
        "Idempotency-Key",
        "A repeated request with the same key and body gets the same turn; `auto` derives the key from the body.",
        **KEY,
    ),
    "upload_key": _header(
        "Idempotency-Key",
        "A repeated request with the same key and file gets the same file; `auto` derives the key from the file's "
        "content, name, type and purpose.",
        **KEY,
    ),
    "own_key": _header(
        "Idempotency-Key",
        "A repeated request with the same key and body gets the same batch. `auto` is refused.",
        **KEY,
    ),
    "create_key": _header(
        "Idempotency-Key",
        "A repeated request with the same key and body gets the same session or project. `auto` is refused.",
        **KEY,
    ),
    "first_key": _header(
        "Idempotency-Key",
        "A repeated request with the same key and body gets the same turn. Without the cookie, the key has at least "
        "22 random characters, and `auto` is refused.",
        **KEY,
    ),
    "last": _header("Last-Event-ID", "The `id:` of the last received event.", **CURSOR),
    "last_proven": _header("Last-Event-ID", "The `id:` of the last received event.", **PROVEN_CURSOR),
    "ticket": _query("ticket", "A ticket from `POST /v1/turns/{turn}/tickets`, instead of a key."),
    "cursor": _query("after", AFTER, **CURSOR),
    "last_position": _header("Last-Event-ID", "The `id:` of the last received event.", **POSITION),
    "position": _query("after", AFTER, **POSITION),
    **{name: _query(name, "The same as `Last-Event-ID`.") for name in LAST_EVENT_ID},
    "pace": _query(
        "pace",
        "The replay speed: 1 is the original; by default as fast as possible.",
        type="string",
        pattern=PACE_PATTERN,
    ),
    "dialect": _query("dialect", "The stream's format; `tailrace` by default.", type="string", enum=list(DIALECTS)),
    "session": _header("X-Session-ID", "The session of the turn; a new name creates it."),
    "project": _header("X-Project-ID", "The project of the session."),
    "after": _query("after", "The `next` of the previous page."),
    "after_index": _query("after", "The `index` of the last received line.", type="integer", minimum=0),
    "limit": _query("limit", "The maximum number of items in the page.", type="integer", minimum=1, maximum=200),
    "of_tenant": _query("tenant", "Only keys of this tenant."),
    "of_project": _query("project_id", "Only items of this project."),
    "of_session": _query("session", "Only items of this session."),
    "status": _query(
        "status",
        "Only turns with this outcome; running ones are listed oldest first.",
        enum=["running", "completed", "cancelled", "failed"],
    ),
    "q": _query("q", "Only turns that contain all of these words in their message and answer."),
    "of_user": _query("user", "Only items of this user."),
    "of_model": _query("model", "Only turns of this model."),
    "of_key": _query("key", "Only turns of the API key with this id."),
    "of_metadata": {
        **_query(
            "metadata",
            "Only turns with these fields: `metadata[team]=search`.",
            type="object",
            additionalProperties={"type": "string"},
        ),
        "style": "deepObject",
        "explode": True,
    },
    "by": _query("by", "The unit to sum by.", type="string", pattern=f"^({'|'.join(USAGE_BY)}|metadata\\..+)$"),
    "erased_user": {**_query("user", "The user whose data is erased."), "required": True},
    "max_seconds": _query(
        "max_seconds",
        "Respond after about so many seconds, with `complete: false` if not all is erased.",
        type="integer",
        minimum=1,
        maximum=SECONDS_MAX,
    ),
    "confirm": {**_query("confirm", "The name of the tenant."), "required": True},
    "usage_key": _query("key", "Only the usage of this day, model, user…"),
    "from": _query("from", "The first day (UTC).", type="string", format="date"),
    "to": _query("to", "The last day (UTC).", type="string", format="date"),
    "after_id": _query("after_id", "Only models after this one."),
    "before_id": _query("before_id", "Only models before this one."),
    "lifecycle": _query("lifecycle[]", "`active`, `deprecated` or `retired`; the first two by default."),
    "stream": _query("stream", "Whether to stream the response.", type="boolean"),
    "starting_after": _query("starting_after", "The last received `sequence_number`.", type="integer", minimum=0),
    "snapshot": _query("snapshot", "1: the answer so far as one delta.", enum=["1"]),
    # Parameters that client libraries add by themselves.
    "beta": _query("beta", "Sent by the SDKs of Anthropic and OpenAI. It has no effect."),
    "api_version": _query("api-version", "Sent by clients of Azure OpenAI. It has no effect."),
    "client_version": _query("client_version", "Sent by OpenAI's Codex. It has no effect."),
    "page_number": _query("page", "The number of the page, instead of `after`.", type="integer", minimum=1),
    "per_page": _query("per_page", "The same as `limit`.", type="integer", minimum=1, maximum=200),
    "page": _query("page", "Only 1: pages are addressed by `after`.", enum=["1"]),
    "order": _query("order", "The order of the items; `desc` by default.", enum=["asc", "desc"]),
    "turn_order": _query("order", "The order of the turns; `asc`, oldest first, by default.", enum=["asc", "desc"]),
    "after_item": _query("after", "The id of the last received item."),
    "after_file": _query("after_id", "The same as `after`, as Anthropic's SDKs send it."),
    "page_file": _query("page", "The `next_page` of the previous page, as Anthropic's SDKs send it."),
    "items_limit": _query("limit", "The maximum number of items.", type="integer", minimum=1, maximum=100),
    "batches_limit": _query("limit", "The maximum number of batches.", type="integer", minimum=1, maximum=100),
    "after_batch": _query("after_id", "Only batches that are older than this one."),
    "before_batch": _query("before_id", "Only batches that are newer than this one."),
    "message_batches_limit": _query("limit", "The maximum number of batches.", type="integer", minimum=1, maximum=1000),
    "models_limit": _query("limit", "The maximum number of models.", type="integer", minimum=1, maximum=1000),
    "files_limit": _query("limit", "The maximum number of files.", type="integer", minimum=1, maximum=1000),
    "purpose": _query("purpose", "Only files with this purpose."),
    "include": _query("include", "It has no effect."),
    "include_list": _query("include[]", "The same, as OpenAI's SDKs send it."),
    "include_obfuscation": _query("include_obfuscation", "It has no effect."),
    "start_index": _query("startIndex", "The index of the first chunk; negative: from the end.", type="integer"),
    "replay": _query("replay", "`true`: `startIndex` counts as in a stream that began without it."),
}
# Second spellings of parameters. The document leaves them out: generated clients would give both the same name.
SPELLINGS = frozenset({"include_list", *LAST_EVENT_ID})
OF_LABEL = ("of_user", "of_model", "of_key", "of_metadata")
PAGE = ("after", "limit", "page")
NUMBERED = ("after", "limit", "page_number", "per_page")
AZURE = ("api_version",)
INCLUDE = ("include", "include_list")
BETA = ("beta", *AZURE)
LISTING_MESSAGE_BATCHES = ("after_batch", "before_batch", "message_batches_limit", "beta")
LISTING_FILES = ("after_item", "after_file", "page_file", "files_limit", "order", "purpose", *BETA)
RESUMING = ("last", "cursor", *LAST_EVENT_ID)
READING = ("last_proven", "cursor", *LAST_EVENT_ID, "dialect", "pace")
NAMED = ("key", "session", "project", "pace")
GONE = {204: "The cursor is at the end: there are no more events."}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/turns"): Operation(
        # The response 200, a stream, is left out: hey-api and openapi-fetch would lose the type of the response 202.
        "turns",
        NewTurn,
        AcceptedTurn,
        202,
        parameters=("key", "dialect", "pace", *RESUMING),
    ),
    ("GET", "/v1/turns"): Operation(
        "turns", response=TurnList, parameters=("status", "of_session", "q", *OF_LABEL, "from", "to", *PAGE)
    ),
    ("GET", "/v1/turns/{turn}"): Operation("turns", response=TurnRecord),
    ("DELETE", "/v1/turns/{turn}"): Operation("turns", response=DeletedObject),
    ("GET", "/v1/turns/{turn}/events"): Operation("turns", streams=SSE, parameters=(*READING, "ticket"), statuses=GONE),
    ("GET", "/v1/turns/{turn}/timeline"): Operation("turns", response=Timeline),
    ("POST", "/v1/turns/{turn}/cancel"): Operation("turns", response=TurnRecord),
    ("GET", "/v1/turn-batches"): Operation("batches", response=BatchList, parameters=PAGE),
    ("POST", "/v1/turn-batches"): Operation("batches", NewBatch, AcceptedBatch, 202, parameters=("own_key",)),
    ("GET", "/v1/turn-batches/{batch}"): Operation("batches", response=BatchRecord),
    ("GET", "/v1/turn-batches/{batch}/results"): Operation("batches", streams=JSON_LINES, parameters=("after_index",)),
    ("POST", "/v1/turn-batches/{batch}/cancel"): Operation("batches", response=BatchRecord),
    ("GET", "/v1/blobs/{sha256}"): Operation("turns", streams="application/octet-stream"),
    ("GET", "/v1/batches"): Operation(
        "batches", response=Any, parameters=("after_item", "batches_limit", *AZURE), reference=OPENAI_BATCH
    ),
    ("POST", "/v1/batches"): Operation(
        "batches", NewFileBatch, Any, parameters=("own_key", *AZURE), reference=OPENAI_BATCH
    ),
    ("GET", "/v1/batches/{file_batch}"): Operation("batches", response=Any, parameters=AZURE, reference=OPENAI_BATCH),
    ("POST", "/v1/batches/{file_batch}/cancel"): Operation(
        "batches", response=Any, parameters=AZURE, reference=OPENAI_BATCH
    ),
    ("GET", "/v1/files"): Operation("files", response=Any, parameters=LISTING_FILES, reference=FILES),
    ("POST", "/v1/files"): Operation("files", Form, Any, parameters=("upload_key", *BETA), reference=FILES),
    ("GET", "/v1/files/{file_id}"): Operation("files", response=Any, parameters=BETA, reference=FILES),
    ("DELETE", "/v1/files/{file_id}"): Operation("files", response=Any, parameters=BETA, reference=FILES),
    ("GET", "/v1/files/{file_id}/content"): Operation(
        "files", streams="application/octet-stream", parameters=BETA, reference=FILES
    ),
    ("POST", "/v1/turns/{turn}/tickets"): Operation("turns", NewTicket, MadeTicket),
    ("POST", "/v1/login"): Operation("login", response=LoggedIn),
    ("POST", "/v1/login/refresh"): Operation("login", response=LoggedIn, uses_cookie=True),
    ("POST", "/v1/logout"): Operation("login", status=204),
    ("POST", "/v1/chat/completions"): Operation(
        "openai", ChatCompletionRequest, Any, streams=SSE, parameters=NAMED + AZURE, reference=OPENAI_CHAT
    ),
    ("POST", "/v1/responses"): Operation(
        "openai", ResponseRequest, Any, streams=SSE, parameters=NAMED + BETA, reference=OPENAI_RESPONSES
    ),
    ("GET", "/v1/responses/{response_id}"): Operation(
        "openai",
        response=Any,
        streams=SSE,
        parameters=("stream", "starting_after", "snapshot", *INCLUDE, "include_obfuscation", *BETA),
        reference=OPENAI_RESPONSES,
    ),
    ("DELETE", "/v1/responses/{response_id}"): Operation(
        "openai", response=Any, parameters=BETA, reference=OPENAI_RESPONSES
    ),
    ("POST", "/v1/responses/{response_id}/cancel"): Operation(
        "openai", response=Any, parameters=BETA, reference=OPENAI_RESPONSES
    ),
    ("GET", "/v1/responses/{response_id}/input_items"): Operation(
        "openai",
        response=Any,
        parameters=("after_item", "items_limit", "order", *INCLUDE, *BETA),
        reference=OPENAI_RESPONSES,
    ),
    ("POST", "/v1/messages"): Operation(
        "anthropic", MessagesRequest, Any, streams=SSE, parameters=(*NAMED, *RESUMING, "beta"), reference=ANTHROPIC
    ),
    ("POST", "/v1/messages/count_tokens"): Operation(
        "anthropic", CountTokensRequest, TokenCount, parameters=("beta",), reference=ANTHROPIC
    ),
    ("GET", "/v1/messages/batches"): Operation(
        "batches", response=Any, parameters=LISTING_MESSAGE_BATCHES, reference=MESSAGE_BATCHES
    ),
    ("POST", "/v1/messages/batches"): Operation(
        "batches", NewMessageBatch, Any, parameters=("own_key", "beta"), reference=MESSAGE_BATCHES
    ),
    ("GET", "/v1/messages/batches/{message_batch}"): Operation(
        "batches", response=Any, parameters=("beta",), reference=MESSAGE_BATCHES
    ),
    ("DELETE", "/v1/messages/batches/{message_batch}"): Operation(
        "batches", response=Any, parameters=("beta",), reference=MESSAGE_BATCHES
    ),
    ("GET", "/v1/messages/batches/{message_batch}/results"): Operation(
        "batches", streams=JSON_LINES, parameters=("beta",), reference=MESSAGE_BATCHES
    ),
    ("POST", "/v1/messages/batches/{message_batch}/cancel"): Operation(
        "batches", response=Any, parameters=("beta",), reference=MESSAGE_BATCHES
    ),
    ("GET", "/v1/models"): Operation(
        "models",
        response=ModelPage,
        parameters=("models_limit", "after_id", "before_id", "lifecycle", "beta", "client_version", *AZURE),
    ),
    ("GET", "/v1/models/capabilities"): Operation("models", response=ModelSheets),
    ("GET", "/v1/models/{model}"): Operation("models", response=ModelCard, parameters=("beta", *AZURE)),
    ("GET", "/v1/prompts"): Operation("models", response=PromptList),
    ("GET", "/v1/prompts/{name}"): Operation("models", response=PromptTemplate),
    ("POST", "/api/chat"): Operation(
        "ai-sdk", UIChatRequest, streams=SSE, parameters=("key", "pace", *RESUMING), reference=AI_SDK
    ),
    ("GET", "/api/chat/{chat}/stream"): Operation(
        "ai-sdk", streams=SSE, parameters=("start_index", "replay"), statuses=GONE, reference=AI_SDK
    ),
    ("POST", "/api/chat/{chat}/stop"): Operation("ai-sdk", response=StoppedTurn),
    ("GET", "/api/chat/{chat}/messages"): Operation("ai-sdk", response=list, reference=AI_SDK),
    ("GET", "/v1/sessions"): Operation(
        "sessions", response=SessionList, parameters=(*NUMBERED, "of_project", "of_user")
    ),
    ("POST", "/v1/sessions"): Operation("sessions", NewSessionBody, SessionRecord, parameters=("create_key",)),
    ("GET", "/v1/sessions/stats"): Operation("sessions", response=SessionStats),
    ("GET", "/v1/sessions/{session}"): Operation("sessions", response=SessionRecord),
    ("PATCH", "/v1/sessions/{session}"): Operation("sessions", ChangeBody, SessionRecord),
    ("DELETE", "/v1/sessions/{session}"): Operation("sessions", response=DeletedObject),
    ("POST", "/v1/sessions/{session}/cancel"): Operation("sessions", response=CancelledSession),
    ("GET", "/v1/sessions/{session}/turns"): Operation("sessions", response=TurnPage, parameters=("turn_order", *PAGE)),
    ("GET", "/v1/sessions/{session}/events"): Operation(
        "sessions", streams=SSE, parameters=("last_position", "position", *LAST_EVENT_ID)
    ),
    ("GET", "/v1/sessions/{session}/branches"): Operation("sessions", response=BranchList, parameters=PAGE),
    ("GET", "/v1/projects"): Operation("projects", response=ProjectList, parameters=NUMBERED),
    ("POST", "/v1/projects"): Operation("projects", NewProjectBody, Project, parameters=("create_key",)),
    ("GET", "/v1/projects/{project}"): Operation("projects", response=Project),
    ("DELETE", "/v1/projects/{project}"): Operation("projects", response=DeletedObject),
    ("GET", "/v1/usage"): Operation(
        "projects", response=UsageList, parameters=("by", "usage_key", "from", "to", *PAGE)
    ),
    ("DELETE", "/v1/users"): Operation("projects", response=ErasureReport, parameters=("erased_user", "max_seconds")),
    ("DELETE", "/v1/tenant"): Operation("projects", response=ErasureReport, parameters=("confirm", "max_seconds")),
    ("GET", "/v1/admin/keys"): Operation("admin", response=KeyList, parameters=("of_tenant", *PAGE)),
    ("POST", "/v1/admin/keys"): Operation("admin", NewKeyBody, CreatedKey, 201),
    ("DELETE", "/v1/admin/keys/{key_id}"): Operation("admin", response=KeyRecord),
    ("POST", "/v1/admin/keys/{key_id}/rotate"): Operation("admin", RotateBody, CreatedKey, 201),
    ("GET", "/v1/admin/tenants"): Operation("admin", response=TenantList, parameters=PAGE),
    ("GET", "/v1/admin/tenants/{tenant}/limits"): Operation("admin", response=TenantBody),
    ("PUT", "/v1/admin/tenants/{tenant}/limits"): Operation("admin", LimitsBody, TenantBody),
    ("GET", "/v1/admin/tenants/{tenant}/usage"): Operation(
        "admin", response=UsageList, parameters=("by", "usage_key", "from", "to", *PAGE)
    ),
    ("GET", "/v1/admin/audit"): Operation("admin", response=AuditList, parameters=PAGE),
    ("POST", "/chat/stream"): Operation(
        "tutorials", ChatStreamRequest, streams=SSE, parameters=("key", "pace", *RESUMING)
    ),
    ("POST", "/chat"): Operation("tutorials", ChatRequest, streams="text/plain", parameters=("first_key", "pace")),
    ("POST", "/ai/chat"): Operation("tutorials", AIChatRequest, streams=SSE, parameters=("key", "pace", *RESUMING)),
    ("POST", "/api/start-job"): Operation("tutorials", StartJobRequest, StartedJob, 202, parameters=("key",)),
    ("POST", "/api/process"): Operation("tutorials", StartJobRequest, StartedJob, 202, parameters=("key",)),
    ("GET", "/api/stream/{job_id}"): Operation("tutorials", streams=SSE, parameters=RESUMING, statuses=GONE),
    ("GET", "/"): Operation("operation", response=Directory, streams="text/plain"),
    ("GET", "/turns/{turn}"): Operation("operation", streams="text/html"),
    ("GET", "/page/{file}"): Operation("operation", streams="text/javascript"),
    ("GET", "/health"): Operation("operation", response=Health),
    ("GET", "/healthz"): Operation("operation", response=Any),
    ("GET", "/readyz"): Operation("operation", response=Any),
    ("GET", "/metrics"): Operation("operation", streams="text/plain"),
    ("GET", "/ops"): Operation("operation", streams="text/html"),
    ("GET", "/ops/page.js"): Operation("operation", streams="text/javascript"),
    ("GET", "/ops/page.css"): Operation("operation", streams="text/css"),
    ("GET", "/ops/values"): Operation("operation", response=Overview),
    ("GET", "/openapi.json"): Operation("operation", response=Any),
    ("GET", "/docs"): Operation("operation", streams="text/html"),
}


def query_parameters(method: str, path: str) -> frozenset[str]:
    """Returns the names of the query parameters of a route. Raises KeyError for a route without a row."""
    row = OPERATIONS["GET" if method == "HEAD" else method, path]
    parameters = [PARAMETERS[name] for name in row.parameters]
    return frozenset(one["name"] for one in parameters if one["in"] == "query")
