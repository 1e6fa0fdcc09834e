"""Advice for routes of other APIs that do not exist here."""

import re
import time
from importlib.resources import files
from importlib.resources.abc import Traversable

import pytest
from starlette.requests import Request
from starlette.routing import Match, Route

from tailrace.features.gateway import FEATURES, ROUTES


def advice_for(path: str) -> str | None:
    """Returns the first advice of a protocol for a request without further headers."""
    request = Request({"type": "http", "path": path, "headers": []})
    return next(filter(None, (feature.advise(request) for feature in FEATURES)), None)


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/v1/embeddings", "Claude has no embeddings"),
        ("/v1/images/generations", "Claude makes no images"),
        ("/v1/audio/speech/", "Claude has no speech"),
        ("/v1/uploads/upload_1/parts", "POST /v1/files"),
        ("/v1/conversations/conv_1", "previous_response_id"),
        ("/v1/vector_stores/vs_1", "send the passages"),
        ("/v1/agents/agent_1", "in your own program"),
        ("/v1/dreams/dream_1", "in your own program"),
        ("/v1/tunnels", "`mcp_servers`"),
        ("/v1/user_profiles/x/action_urls", "metadata.user_id"),
        ("/v1/completions", "POST /v1/chat/completions"),
        ("/v1/chat/completions/chatcmpl-1/messages", "/v1/turns/{turn}"),
        ("/v1/chat/completions", None),
        ("/v1/v1/messages", "has no /v1"),
        ("/chat/completions", "ends with /v1"),
        ("/messages", "ends with /v1"),
        ("/api/completion", "`useChat`"),
        ("/v1/filesystem", None),
        ("/v1", None),
        ("/", None),
        ("", None),
    ],
)
def test_the_advice_is_that_of_the_nearest_parent(path: str, advice: str | None) -> None:
    found = advice_for(path)
    assert found is None if advice is None else found is not None and advice in found


def test_no_advice_is_given_for_a_route_that_exists() -> None:
    """Otherwise its errors would contradict it."""
    assert [route.path for route in ROUTES if advice_for(route.path) is not None] == []


# A call of a resource of Anthropic's SDK: its method and its path, as a string or as a template with names in braces.
CALL = re.compile(r'self\._(get|post|put|patch|delete|get_api_list)\(\s*(?:path_template\(\s*)?"(/[^"?]*)')


def list_calls(folder: Traversable) -> set[tuple[str, str]]:
    """Returns the methods and paths that the resources of Anthropic's SDK call."""
    found: set[tuple[str, str]] = set()
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= list_calls(entry)
        elif entry.name.endswith(".py"):
            calls = CALL.findall(entry.read_text())
            found |= {("GET" if name.startswith("get") else name.upper(), path) for name, path in calls}
    return found


SDK_CALLS = sorted(list_calls(files("anthropic.resources")))


SERVED = [Route(one.path, one.endpoint, methods=[one.method]) for one in ROUTES]


def has_route(method: str, path: str) -> bool:
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in SERVED)


def test_each_path_of_anthropics_sdk_has_a_route_or_advice() -> None:
    """A path of Managed Agents under /v1/sessions is recognised by its beta header (managed_agents.py)."""
    assert len(SDK_CALLS) > 150
    assert {path for _, path in SDK_CALLS} >= {"/v1/messages", "/v1/messages/batches/{message_batch_id}"}
    absent = [
        f"{method} {path}"
        for method, path in SDK_CALLS
        if not has_route(method, re.sub(r"{\w+}", "x", path))
        and advice_for(path) is None
        and not path.startswith("/v1/sessions")
    ]
    assert absent == []


@pytest.mark.rule("S14")
def test_the_longest_path_is_looked_up_at_once() -> None:
    """Without a key, a path of 60,000 slashes would stop all streams."""
    began = time.process_time()
    assert advice_for("/" * 60_000) is None
    assert time.process_time() - began < 0.05
