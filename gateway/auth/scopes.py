"""The scope that each route needs, in one table. A route without a row is refused."""

from typing import Literal

from tailrace.proto.api_key import Scope

Need = Scope | Literal["public"]
"""`public`: the route needs no credential."""

NEEDS: dict[tuple[str, str], Need] = {
    ("POST", "/v1/turns"): "write",
    ("GET", "/v1/turns"): "read",
    ("GET", "/v1/turns/{turn}"): "read",
    ("GET", "/v1/turns/{turn}/events"): "read",
    ("POST", "/v1/turns/{turn}/cancel"): "write",
    ("DELETE", "/v1/turns/{turn}"): "manage",
    ("POST", "/v1/turns/{turn}/tickets"): "read",
    ("GET", "/v1/turn-batches"): "read",
    ("POST", "/v1/turn-batches"): "write",
    ("GET", "/v1/turn-batches/{batch}"): "read",
    ("GET", "/v1/turn-batches/{batch}/results"): "read",
    ("POST", "/v1/turn-batches/{batch}/cancel"): "write",
    ("GET", "/v1/blobs/{sha256}"): "read",
    ("GET", "/v1/sessions"): "read",
    ("POST", "/v1/sessions"): "write",
    ("GET", "/v1/sessions/stats"): "read",
    ("GET", "/v1/sessions/{session}"): "read",
    ("PATCH", "/v1/sessions/{session}"): "manage",
    ("DELETE", "/v1/sessions/{session}"): "manage",
    ("POST", "/v1/sessions/{session}/cancel"): "write",
    ("GET", "/v1/sessions/{session}/turns"): "read",
    ("GET", "/v1/sessions/{session}/branches"): "read",
    ("GET", "/v1/projects"): "read",
    ("POST", "/v1/projects"): "manage",
    ("GET", "/v1/projects/{project}"): "read",
    ("DELETE", "/v1/projects/{project}"): "manage",
    ("GET", "/v1/usage"): "read",
    ("POST", "/v1/messages"): "write",
    ("POST", "/v1/messages/count_tokens"): "write",
    ("POST", "/v1/chat/completions"): "write",
    ("POST", "/v1/responses"): "write",
    ("GET", "/v1/responses/{response}"): "read",
    ("GET", "/v1/responses/{response}/input_items"): "read",
    ("POST", "/v1/responses/{response}/cancel"): "write",
    ("DELETE", "/v1/responses/{response}"): "manage",
    ("POST", "/chat/stream"): "write",
    ("POST", "/chat"): "write",
    ("POST", "/ai/chat"): "write",
    ("POST", "/api/start-job"): "write",
    ("POST", "/api/process"): "write",
    ("GET", "/api/stream/{job_id}"): "read",
    ("POST", "/api/chat"): "write",
    ("GET", "/api/chat/{chat}/stream"): "read",
    ("POST", "/api/chat/{chat}/stop"): "write",
    ("GET", "/api/chat/{chat}/messages"): "read",
    ("GET", "/v1/models"): "read",
    ("GET", "/v1/models/capabilities"): "read",
    ("GET", "/v1/models/{model}"): "read",
    ("POST", "/v1/login"): "read",
    ("POST", "/v1/login/refresh"): "read",
    ("POST", "/v1/logout"): "public",
    ("GET", "/v1/prompts"): "read",
    ("GET", "/v1/prompts/{name}"): "read",
    ("GET", "/"): "public",
    ("GET", "/page/{file}"): "public",
    ("GET", "/docs"): "public",
    ("GET", "/openapi.json"): "public",
    ("GET", "/health"): "public",
    ("GET", "/healthz"): "public",
    ("GET", "/readyz"): "public",
    ("GET", "/metrics"): "public",
    ("GET", "/ops"): "public",
    ("GET", "/ops/page.js"): "public",
    ("GET", "/ops/page.css"): "public",
    ("GET", "/ops/values"): "operate",
}


def need_of(method: str, path: str) -> Need | None:
    """Returns what a route needs; None if the table has no row for it."""
    return NEEDS.get(("GET" if method == "HEAD" else method, path))
