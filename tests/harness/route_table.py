"""A table of all routes with a request for each and its access rule, made of the rows of the gateway."""

import hashlib
import re
from typing import Any, NamedTuple

from tailrace.features.gateway import ROUTES
from tailrace.gateway.http.route import Route

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


# The bodies of the requests that create something, by path. A path without a row needs none.
SIMULATED = "#sim words=1 rate=0"
QUESTION = [{"role": "user", "content": SIMULATED}]
RUN = {"threadId": "thread", "runId": "run", "messages": [{"id": "1", "role": "user", "content": SIMULATED}]}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/turns"): {"message": SIMULATED},
    ("POST", "/v1/turns/{turn}/tickets"): {},
    ("POST", "/v1/turns/{turn}/steer"): {"message": SIMULATED},
    ("POST", "/v1/turn-batches"): BATCH,
    ("POST", "/v1/batches"): {"input_file_id": "file-none", "endpoint": "/v1/responses", "completion_window": "24h"},
    ("POST", "/v1/sessions"): {"title": "Rivers"},
    ("PATCH", "/v1/sessions/{session}"): {"title": "Rivers"},
    ("POST", "/v1/sessions/{session}/calls/{call}"): {"result": "blue"},
    ("POST", "/v1/projects"): {"name": "Rivers"},
    ("POST", "/v1/admin/keys"): {"tenant": "acme"},
    ("POST", "/v1/admin/keys/{key_id}/rotate"): {},
    ("PUT", "/v1/admin/tenants/{tenant}/limits"): {"limits": {}},
    ("PUT", "/v1/admin/tenants/{tenant}"): {"users": "shared"},
    ("POST", "/v1/messages"): MESSAGE,
    ("POST", "/v1/messages/batches"): MESSAGE_BATCH,
    ("POST", "/v1/messages/count_tokens"): {"model": "claude-sonnet-5-5", "messages": []},
    ("POST", "/v1/chat/completions"): {"model": "claude-haiku-5-5", "messages": QUESTION},
    ("POST", "/v1/responses"): {"model": "claude-sonnet-5-5", "input": SIMULATED},
    ("POST", "/chat/stream"): {"message": SIMULATED},
    ("POST", "/chat"): {"message": SIMULATED},
    ("POST", "/ai/chat"): {"messages": QUESTION},
    ("POST", "/api/start-job"): {"prompt": SIMULATED},
    ("POST", "/api/process"): {"prompt": SIMULATED},
    ("POST", "/api/agui"): RUN,
    ("POST", "/api/copilotkit/agent/{agent}/run"): RUN,
    ("POST", "/api/copilotkit/agent/{agent}/connect"): RUN,
    ("POST", "/api/copilotkit/agent/{agent}/stop/{thread}"): {},
    ("POST", "/api/chat"): {"messages": [{"role": "user", "parts": [{"type": "text", "text": SIMULATED}]}]},
}
QUERIES = {
    ("GET", "/v1/turns"): "?status=running",
    ("DELETE", "/v1/users"): "?user=nobody",
    ("GET", "/api/chat/{chat}/stream"): "?startIndex=0",
    ("GET", "/api/agui"): "?threadId=none",
}
# The routes whose named resource belongs to all tenants, as a model does.
EVERYBODYS = {
    *("/v1/models/{model}", "/v1/prompts/{name}", "/turns/{turn}", "/page/{file}", "/guides/{guide}"),
    *("/api/copilotkit/agent/{agent}/run", "/api/copilotkit/agent/{agent}/connect"),
}
# The routes whose response has no end by itself.
ENDLESS = {"/v1/sessions/{session}/events"}


class Row(NamedTuple):
    """One route, as the tests of access use it."""

    names: str
    """The kind of resource in the path; another tenant's must look like one that does not exist. `""`: the path has
    none, or the route is one of operators, which reads the resources of all tenants."""
    is_everybodys: bool
    is_public: bool
    is_endless: bool
    query: str
    body: dict[str, Any] | None


def row_of(route: Route) -> Row:
    """Returns the row of a route."""
    name = (route.method, route.path)
    # A path has one parameter, or that of a session and of a call in it, or a test of the table fails.
    kinds = re.findall(r"{(\w+)}", route.path) if route.need != "admin" else []
    return Row(
        names="".join(kinds),
        is_everybodys=route.path in EVERYBODYS,
        is_public=route.need == "public",
        is_endless=route.path in ENDLESS,
        query=QUERIES.get(name, ""),
        body=BODIES.get(name),
    )


ROWS = {(route.method, route.path): row_of(route) for route in ROUTES}


def path_parameters(
    turn: str,
    session: str,
    project: str,
    batch: str = "none",
    file: str = "none",
    file_batch: str = "none",
    message_batch: str = "none",
    call: str = "none",
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
        "agent": "default",
        "thread": session,
        "file_id": file,
        "file_batch": file_batch,
        "message_batch": message_batch,
        "call": call,
        "sha256": LONG_SHA256,
        "model": "claude-sonnet-5-5",
        "name": "none",
        "guide": "API",
        "file": "page.js",
        "key_id": "key_0123456789abcdef",
        "tenant": "acme",
    }
