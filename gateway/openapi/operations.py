"""What the API's document has to know of each route beyond its path: a row for each. It serves nothing.

A test fails on a route without a row. What a route does stands in its docstring; the shapes are the Structs that it
reads and writes. Where a body is another protocol's, its own reference is linked: that is the contract.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tailrace.gateway.clients.ai_sdk.request import UIChatRequest
from tailrace.gateway.clients.ai_sdk.routes import Stopped
from tailrace.gateway.clients.anthropic.count_tokens import CountTokensRequest
from tailrace.gateway.clients.anthropic.request import MessagesRequest
from tailrace.gateway.clients.native.routes import Accepted
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
from tailrace.gateway.models.card import ModelCard, ModelPage, ModelSheets
from tailrace.gateway.prompts.templates import Prompt as PromptTemplate
from tailrace.gateway.resources.batches import AcceptedBatch, BatchList, BatchRecord
from tailrace.gateway.resources.deletion import Deleted
from tailrace.gateway.resources.health import Health
from tailrace.gateway.resources.index import Directory
from tailrace.gateway.resources.login import LoggedIn
from tailrace.gateway.resources.projects import NewProjectBody, ProjectList
from tailrace.gateway.resources.prompts import PromptList
from tailrace.gateway.resources.sessions import BranchList, NewSessionBody, RenameBody, SessionList, SessionStats
from tailrace.gateway.resources.tickets import MadeTicket, NewTicket
from tailrace.gateway.resources.usage import UsageList
from tailrace.gateway.streaming.pacing import PACE
from tailrace.gateway.turns.batch_body import NewBatch
from tailrace.gateway.turns.request_body import NewTurn
from tailrace.proto.model_records import TokenCount
from tailrace.proto.records import SessionRecord, TurnPage, TurnRecord
from tailrace.proto.resources import ProjectRecord

SSE = "text/event-stream"
JSON_LINES = "application/x-ndjson"
OPENAI_CHAT = "https://platform.openai.com/docs/api-reference/chat"
OPENAI_RESPONSES = "https://platform.openai.com/docs/api-reference/responses"
ANTHROPIC = "https://docs.anthropic.com/en/api/messages"
AI_SDK = "https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol"

Json = dict[str, Any]


class Operation(NamedTuple):
    tag: str
    asks: Any = None
    """The Struct of its JSON body."""
    answers: Any = None
    """The Struct of its JSON answer; `Any` is an object that has none."""
    status: int = 200
    streams: str = ""
    """The media type of what it streams."""
    parameters: tuple[str, ...] = ()
    also: Mapping[int, str] = {}
    """Other statuses that are no errors."""
    has_cookie: bool = False
    """Whether a cookie stands for who asks, and no key."""
    see: str = ""
    """Whose protocol it is."""

    @property
    def kinds(self) -> set[Any]:
        return {kind for kind in (self.asks, self.answers) if kind not in (None, Any)}


def _query(name: str, about: str, **schema: Any) -> Json:
    return {"name": name, "in": "query", "description": about, "schema": schema or {"type": "string"}}


def _header(name: str, about: str, **schema: Any) -> Json:
    return {"name": name, "in": "header", "description": about, "schema": schema or {"type": "string"}}


PACE_PATTERN = f"^({PACE.pattern})$"
CURSOR = {"type": "string", "pattern": "^[0-9]{1,19}$"}
PARAMETERS: dict[str, Json] = {
    "key": _header(
        "Idempotency-Key",
        "The same key with the same body is the same turn; `auto`: the same question is.",
        type="string",
        pattern="^[!-~]{1,200}$",
    ),
    "last": _header("Last-Event-ID", "The last `id:` that was received.", **CURSOR),
    "ticket": _query("ticket", "In the place of a key: what `POST /v1/turns/{turn}/tickets` gave."),
    "cursor": _query("after", "The same as Last-Event-ID.", **CURSOR),
    "pace": _query(
        "pace", "How many times as fast as it was written; at once by default.", type="string", pattern=PACE_PATTERN
    ),
    "dialect": _query("dialect", "How the turn is told; `tailrace` by default.", type="string", enum=list(DIALECTS)),
    "session": _header("X-Session-ID", "The conversation that this belongs to; a new name begins one."),
    "project": _header("X-Project-ID", "The project that the conversation belongs to."),
    "after": _query("after", "The `next` of the page before."),
    "after_index": _query("after", "The `index` of the last line that was received.", type="integer", minimum=0),
    "limit": _query("limit", "The size of a page.", type="integer", minimum=1, maximum=200),
    "of_project": _query("project_id", "Only those of this project."),
    "by": _query("by", "What is added up.", enum=["day", "model", "key", "session", "project"]),
    "from": _query("from", "The first day (UTC).", type="string", format="date"),
    "to": _query("to", "The last day (UTC).", type="string", format="date"),
    "after_id": _query("after_id", "Models after this one."),
    "before_id": _query("before_id", "Models before this one."),
    "lifecycle": _query("lifecycle[]", "`active`, `deprecated`, `retired`: the first two by default."),
    "stream": _query("stream", "Whether it is streamed.", type="boolean"),
    "starting_after": _query("starting_after", "The `sequence_number` to go on after.", type="integer", minimum=0),
    "snapshot": _query("snapshot", "1: what was said so far as one delta.", enum=["1"]),
    "start_index": _query("startIndex", "The first chunk wanted; below 0, counted from the end.", type="integer"),
}
PAGE = ("after", "limit")
READING = ("last", "cursor", "dialect", "pace")
NAMED = ("key", "session", "project", "pace")
GONE = {204: "At the end: there is nothing more."}
STREAMED = {200: "The stream itself."}

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/v1/turns"): Operation(
        "turns", NewTurn, Accepted, 202, parameters=("key", "dialect", "pace"), also=STREAMED
    ),
    ("GET", "/v1/turns/{turn}"): Operation("turns", answers=TurnRecord),
    ("DELETE", "/v1/turns/{turn}"): Operation("turns", answers=Deleted),
    ("GET", "/v1/turns/{turn}/events"): Operation("turns", streams=SSE, parameters=(*READING, "ticket"), also=GONE),
    ("POST", "/v1/turns/{turn}/cancel"): Operation("turns", answers=TurnRecord),
    ("GET", "/v1/batches"): Operation("batches", answers=BatchList, parameters=PAGE),
    ("POST", "/v1/batches"): Operation("batches", NewBatch, AcceptedBatch, 202, parameters=("key",)),
    ("GET", "/v1/batches/{batch}"): Operation("batches", answers=BatchRecord),
    ("GET", "/v1/batches/{batch}/results"): Operation("batches", streams=JSON_LINES, parameters=("after_index",)),
    ("POST", "/v1/batches/{batch}/cancel"): Operation("batches", answers=BatchRecord),
    ("GET", "/v1/blobs/{sha256}"): Operation("turns", streams="application/octet-stream"),
    ("POST", "/v1/turns/{turn}/tickets"): Operation("turns", NewTicket, MadeTicket),
    ("POST", "/v1/login"): Operation("login", answers=LoggedIn),
    ("POST", "/v1/login/refresh"): Operation("login", answers=LoggedIn, has_cookie=True),
    ("POST", "/v1/logout"): Operation("login", status=204),
    ("POST", "/v1/chat/completions"): Operation(
        "openai", ChatCompletionRequest, Any, streams=SSE, parameters=NAMED, see=OPENAI_CHAT
    ),
    ("POST", "/v1/responses"): Operation(
        "openai", ResponseRequest, Any, streams=SSE, parameters=NAMED, see=OPENAI_RESPONSES
    ),
    ("GET", "/v1/responses/{response}"): Operation(
        "openai",
        answers=Any,
        streams=SSE,
        parameters=("stream", "starting_after", "snapshot"),
        see=OPENAI_RESPONSES,
    ),
    ("DELETE", "/v1/responses/{response}"): Operation("openai", answers=Any, see=OPENAI_RESPONSES),
    ("POST", "/v1/responses/{response}/cancel"): Operation("openai", answers=Any, see=OPENAI_RESPONSES),
    ("GET", "/v1/responses/{response}/input_items"): Operation("openai", answers=Any, see=OPENAI_RESPONSES),
    ("POST", "/v1/messages"): Operation(
        "anthropic", MessagesRequest, Any, streams=SSE, parameters=NAMED, see=ANTHROPIC
    ),
    ("POST", "/v1/messages/count_tokens"): Operation("anthropic", CountTokensRequest, TokenCount, see=ANTHROPIC),
    ("GET", "/v1/models"): Operation(
        "models", answers=ModelPage, parameters=("limit", "after_id", "before_id", "lifecycle")
    ),
    ("GET", "/v1/models/capabilities"): Operation("models", answers=ModelSheets),
    ("GET", "/v1/models/{model}"): Operation("models", answers=ModelCard),
    ("GET", "/v1/prompts"): Operation("models", answers=PromptList),
    ("GET", "/v1/prompts/{name}"): Operation("models", answers=PromptTemplate),
    ("POST", "/api/chat"): Operation("ai-sdk", UIChatRequest, streams=SSE, parameters=("key",), see=AI_SDK),
    ("GET", "/api/chat/{chat}/stream"): Operation(
        "ai-sdk", streams=SSE, parameters=("start_index",), also=GONE, see=AI_SDK
    ),
    ("POST", "/api/chat/{chat}/stop"): Operation("ai-sdk", answers=Stopped),
    ("GET", "/api/chat/{chat}/messages"): Operation("ai-sdk", answers=Any, see=AI_SDK),
    ("GET", "/v1/sessions"): Operation("sessions", answers=SessionList, parameters=(*PAGE, "of_project")),
    ("POST", "/v1/sessions"): Operation("sessions", NewSessionBody, SessionRecord, 201),
    ("GET", "/v1/sessions/stats"): Operation("sessions", answers=SessionStats),
    ("GET", "/v1/sessions/{session}"): Operation("sessions", answers=SessionRecord),
    ("PATCH", "/v1/sessions/{session}"): Operation("sessions", RenameBody, SessionRecord),
    ("DELETE", "/v1/sessions/{session}"): Operation("sessions", answers=Deleted),
    ("GET", "/v1/sessions/{session}/turns"): Operation("sessions", answers=TurnPage, parameters=PAGE),
    ("GET", "/v1/sessions/{session}/branches"): Operation("sessions", answers=BranchList, parameters=PAGE),
    ("GET", "/v1/projects"): Operation("projects", answers=ProjectList, parameters=PAGE),
    ("POST", "/v1/projects"): Operation("projects", NewProjectBody, ProjectRecord, 201),
    ("GET", "/v1/projects/{project}"): Operation("projects", answers=ProjectRecord),
    ("DELETE", "/v1/projects/{project}"): Operation("projects", answers=Deleted),
    ("GET", "/v1/usage"): Operation("projects", answers=UsageList, parameters=("by", "from", "to", *PAGE)),
    ("POST", "/chat/stream"): Operation("tutorials", ChatStreamRequest, streams=SSE, parameters=("key",)),
    ("POST", "/chat"): Operation("tutorials", ChatRequest, streams="text/plain", parameters=("key",)),
    ("POST", "/ai/chat"): Operation("tutorials", AIChatRequest, streams=SSE, parameters=("key",)),
    ("POST", "/api/start-job"): Operation("tutorials", StartJobRequest, StartedJob, 202, parameters=("key",)),
    ("GET", "/api/stream/{job_id}"): Operation("tutorials", streams=SSE, parameters=("last", "cursor"), also=GONE),
    ("GET", "/"): Operation("operation", answers=Directory, streams="text/plain"),
    ("GET", "/health"): Operation("operation", answers=Health),
    ("GET", "/healthz"): Operation("operation", answers=Any),
    ("GET", "/readyz"): Operation("operation", answers=Any),
    ("GET", "/metrics"): Operation("operation", streams="text/plain"),
    ("GET", "/openapi.json"): Operation("operation", answers=Any),
    ("GET", "/docs"): Operation("operation", streams="text/html"),
}
