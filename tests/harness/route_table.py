"""A table of all routes with the access rule of each."""

import hashlib
from typing import Any, NamedTuple

# Long enough to be stored as a blob.
LONG_MESSAGE = "#sim words=2 rate=0\n" + "long " * 20_000
MESSAGE = {
    "model": "claude-haiku-5-5",
    "max_tokens": 9,
    "messages": [{"role": "user", "content": "#sim words=1 rate=0"}],
}
MESSAGE_BATCH = {"requests": [{"custom_id": "one", "params": MESSAGE}]}
BATCH = {"requests": [{"custom_id": "one", "params": {"message": "#sim words=1 rate=0"}}]}
LONG_SHA256 = hashlib.sha256(LONG_MESSAGE.encode()).hexdigest()


class Row(NamedTuple):
    """One route. `names`: the kind of resource in the path; another tenant's must look like one that does not exist."""

    names: str = ""
    is_everybodys: bool = False
    """Whether the resource belongs to all tenants, as a model does."""
    is_public: bool = False
    is_endless: bool = False
    """Whether a response has no end by itself."""
    query: str = ""
    body: dict[str, Any] | None = None


def path_parameters(
    turn: str,
    session: str,
    project: str,
    batch: str = "none",
    file: str = "none",
    file_batch: str = "none",
    message_batch: str = "none",
) -> dict[str, str]:
    """Returns the path parameters of a turn, its session and its project."""
    return {
        "turn": turn,
        "session": session,
        "project": project,
        "job_id": turn,
        "batch": batch,
        "response_id": f"resp_{turn}",
        "chat": session,
        "file_id": file,
        "file_batch": file_batch,
        "message_batch": message_batch,
        "sha256": LONG_SHA256,
        "model": "claude-sonnet-5-5",
        "name": "none",
        "file": "page.js",
        "key_id": "key_0123456789abcdef",
        "tenant": "acme",
    }


ROWS = {
    ("POST", "/v1/turns"): Row(body={"message": "#sim words=1 rate=0"}),
    ("GET", "/v1/turns"): Row(query="?status=running"),
    ("GET", "/v1/turns/{turn}"): Row("turn"),
    ("GET", "/v1/turns/{turn}/events"): Row("turn"),
    ("GET", "/v1/turns/{turn}/timeline"): Row("turn"),
    ("POST", "/v1/turns/{turn}/cancel"): Row("turn"),
    ("DELETE", "/v1/turns/{turn}"): Row("turn"),
    ("POST", "/v1/turns/{turn}/tickets"): Row("turn", body={}),
    ("POST", "/v1/login"): Row(),
    ("POST", "/v1/login/refresh"): Row(),
    ("POST", "/v1/logout"): Row(is_public=True),
    ("GET", "/v1/turn-batches"): Row(),
    ("POST", "/v1/turn-batches"): Row(body=BATCH),
    ("GET", "/v1/turn-batches/{batch}"): Row("batch"),
    ("GET", "/v1/turn-batches/{batch}/results"): Row("batch"),
    ("POST", "/v1/turn-batches/{batch}/cancel"): Row("batch"),
    ("GET", "/v1/blobs/{sha256}"): Row("sha256"),
    ("GET", "/v1/batches"): Row(),
    ("POST", "/v1/batches"): Row(
        body={"input_file_id": "file-none", "endpoint": "/v1/responses", "completion_window": "24h"}
    ),
    ("GET", "/v1/batches/{file_batch}"): Row("file_batch"),
    ("POST", "/v1/batches/{file_batch}/cancel"): Row("file_batch"),
    ("GET", "/v1/files"): Row(),
    ("POST", "/v1/files"): Row(),
    ("GET", "/v1/files/{file_id}"): Row("file_id"),
    ("DELETE", "/v1/files/{file_id}"): Row("file_id"),
    ("GET", "/v1/files/{file_id}/content"): Row("file_id"),
    ("GET", "/v1/sessions"): Row(),
    ("POST", "/v1/sessions"): Row(body={"title": "Rivers"}),
    ("GET", "/v1/sessions/stats"): Row(),
    ("GET", "/v1/sessions/{session}"): Row("session"),
    ("PATCH", "/v1/sessions/{session}"): Row("session", body={"title": "Rivers"}),
    ("DELETE", "/v1/sessions/{session}"): Row("session"),
    ("POST", "/v1/sessions/{session}/cancel"): Row("session"),
    ("GET", "/v1/sessions/{session}/turns"): Row("session"),
    ("GET", "/v1/sessions/{session}/events"): Row("session", is_endless=True),
    ("GET", "/v1/sessions/{session}/branches"): Row("session"),
    ("GET", "/v1/projects"): Row(),
    ("POST", "/v1/projects"): Row(body={"name": "Rivers"}),
    ("GET", "/v1/projects/{project}"): Row("project"),
    ("DELETE", "/v1/projects/{project}"): Row("project"),
    ("GET", "/v1/usage"): Row(),
    ("DELETE", "/v1/users"): Row(query="?user=nobody"),
    ("DELETE", "/v1/tenant"): Row(),
    ("GET", "/v1/admin/keys"): Row(),
    ("POST", "/v1/admin/keys"): Row(body={"tenant": "acme"}),
    ("DELETE", "/v1/admin/keys/{key_id}"): Row(),
    ("POST", "/v1/admin/keys/{key_id}/rotate"): Row(body={}),
    ("GET", "/v1/admin/tenants"): Row(),
    ("GET", "/v1/admin/tenants/{tenant}/limits"): Row(),
    ("PUT", "/v1/admin/tenants/{tenant}/limits"): Row(body={"limits": {}}),
    ("GET", "/v1/admin/tenants/{tenant}/usage"): Row(),
    ("GET", "/v1/admin/audit"): Row(),
    ("POST", "/v1/messages"): Row(body=MESSAGE),
    ("GET", "/v1/messages/batches"): Row(),
    ("POST", "/v1/messages/batches"): Row(body=MESSAGE_BATCH),
    ("GET", "/v1/messages/batches/{message_batch}"): Row("message_batch"),
    ("DELETE", "/v1/messages/batches/{message_batch}"): Row("message_batch"),
    ("GET", "/v1/messages/batches/{message_batch}/results"): Row("message_batch"),
    ("POST", "/v1/messages/batches/{message_batch}/cancel"): Row("message_batch"),
    ("POST", "/v1/chat/completions"): Row(
        body={"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": "#sim words=1 rate=0"}]}
    ),
    ("POST", "/v1/responses"): Row(body={"model": "claude-sonnet-5-5", "input": "#sim words=1 rate=0"}),
    ("GET", "/v1/responses/{response_id}"): Row("response_id"),
    ("GET", "/v1/responses/{response_id}/input_items"): Row("response_id"),
    ("POST", "/v1/responses/{response_id}/cancel"): Row("response_id"),
    ("DELETE", "/v1/responses/{response_id}"): Row("response_id"),
    ("POST", "/chat/stream"): Row(body={"message": "#sim words=1 rate=0"}),
    ("POST", "/chat"): Row(body={"message": "#sim words=1 rate=0"}),
    ("POST", "/ai/chat"): Row(body={"messages": [{"role": "user", "content": "#sim words=1 rate=0"}]}),
    ("POST", "/api/start-job"): Row(body={"prompt": "#sim words=1 rate=0"}),
    ("POST", "/api/process"): Row(body={"prompt": "#sim words=1 rate=0"}),
    ("GET", "/api/stream/{job_id}"): Row("job_id"),
    ("GET", "/v1/models"): Row(),
    ("GET", "/v1/models/capabilities"): Row(),
    ("GET", "/v1/models/{model}"): Row("model", is_everybodys=True),
    ("POST", "/v1/messages/count_tokens"): Row(body={"model": "claude-sonnet-5-5", "messages": []}),
    ("GET", "/v1/prompts"): Row(),
    ("GET", "/v1/prompts/{name}"): Row("name", is_everybodys=True),
    ("GET", "/"): Row(is_public=True),
    ("GET", "/turns/{turn}"): Row("turn", is_everybodys=True, is_public=True),
    ("GET", "/page/{file}"): Row("file", is_everybodys=True, is_public=True),
    ("GET", "/health"): Row(is_public=True),
    ("POST", "/api/chat"): Row(
        body={"messages": [{"role": "user", "parts": [{"type": "text", "text": "#sim words=1 rate=0"}]}]}
    ),
    ("GET", "/api/chat/{chat}/stream"): Row("chat", query="?startIndex=0"),
    ("POST", "/api/chat/{chat}/stop"): Row("chat"),
    ("GET", "/api/chat/{chat}/messages"): Row("chat"),
    ("GET", "/openapi.json"): Row(is_public=True),
    ("GET", "/docs"): Row(is_public=True),
    ("GET", "/healthz"): Row(is_public=True),
    ("GET", "/readyz"): Row(is_public=True),
    ("GET", "/metrics"): Row(is_public=True),
    ("GET", "/ops"): Row(is_public=True),
    ("GET", "/ops/page.js"): Row(is_public=True),
    ("GET", "/ops/page.css"): Row(is_public=True),
    ("GET", "/ops/values"): Row(),
}
