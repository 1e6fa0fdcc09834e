"""Advice for routes of other APIs that do not exist here."""

import re
import time
from importlib.resources import files
from importlib.resources.abc import Traversable

import msgspec
import pytest
from starlette.requests import Request
from starlette.routing import Match, Route

from tailrace.features.gateway import FEATURES, ROUTES
from tailrace.gateway.http.validation_hints import OPTIONS
from tailrace.protocols.absent_routes.gateway import ADVICE, RUNTIME
from tailrace.protocols.absent_routes.managed_agents import MESSAGE
from tailrace.protocols.openai.builtin_tools import TOOLS


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
        ("/v1/containers/cntr_1/files", "the tool `code_interpreter`"),
        ("/v1/alpha/search", "the tool `web_search`"),
        ("/v1/agents/sessions", "in your own program"),
        ("/v1/live/sessions", "no realtime API"),
        ("/api/copilotkit/", "GET /api/copilotkit/info"),
        ("/api/copilotkit/other", None),
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


TEXTS = [*dict.fromkeys([*ADVICE.values(), *RUNTIME.values(), MESSAGE])]
# A path that a text names, with its method if that is named, too. "…/connect" is a part of one.
NAMED_PATH = re.compile(r"(?:\b([A-Z]{3,6}) )?(?<![\w…}])(/(?:v1|api|docs)\b[\w/{}.-]*)")
# The things whose absence a text states.
DENIED = re.compile(r"\b(?:there (?:is|are) no|has no|have no|makes no|cannot be) ([\w ]+)")
FIELDS = {field.encode_name for one in ROUTES if one.body for field in msgspec.structs.fields(one.body)}
# Further names in backticks.
OF_CLIENTS = {"useCompletion", "useChat", "anthropic-beta", "client.beta.sessions", "standalone_web_search"}
OF_VALUES = {"chatcmpl-", "metadata.user_id", "auto"}


@pytest.mark.parametrize("text", TEXTS)
def test_an_advice_names_only_routes_and_fields_that_exist(text: str) -> None:
    found = [(method, path.rstrip(".")) for method, path in NAMED_PATH.findall(text)]
    # The base URLs of clients.
    named = [(method, path) for method, path in found if path != "/v1"]
    served = {(one.method, one.path) for one in ROUTES} | {("", one.path) for one in ROUTES}
    assert [one for one in named if one not in served] == []
    names = set(re.findall(r"`([^`/ ]+)`", text))
    assert sorted(names - OF_CLIENTS - OF_VALUES - FIELDS - OPTIONS - {*TOOLS}) == []


@pytest.mark.parametrize("text", TEXTS)
def test_an_advice_denies_nothing_that_exists(text: str) -> None:
    """A built-in tool, or the last name of a path: `code interpreter`, `batches`."""
    segments = (re.sub(r"/{\w+}", "", one.path).rpartition("/")[2] for one in ROUTES)
    existing = {re.sub("[-_]", " ", name) for name in (*TOOLS, *segments)} - {""}
    denied = " ".join(DENIED.findall(text))
    assert [name for name in existing if re.search(rf"\b{re.escape(name)}s?\b", denied)] == []


# A call of a resource of an SDK: its method and its path, as a string or as a template with names in braces.
CALL = re.compile(r'self\._(get|post|put|patch|delete|get_api_list)\(\s*(?:path_template\(\s*)?"(/[^"?]*)')


def list_calls(folder: Traversable) -> list[tuple[str, str]]:
    """Returns the methods and paths that the resources of an SDK call."""
    found: set[tuple[str, str]] = set()
    for entry in folder.iterdir():
        if entry.is_dir():
            found.update(list_calls(entry))
        elif entry.name.endswith(".py"):
            calls = CALL.findall(entry.read_text())
            found |= {("GET" if kind.startswith("get") else kind.upper(), path) for kind, path in calls}
    return sorted((method, re.sub(r"{\w+}", "x", path)) for method, path in found)


ANTHROPIC_CALLS = list_calls(files("anthropic.resources"))
OPENAI_CALLS = [(method, f"/v1{path}") for method, path in list_calls(files("openai.resources"))]
# Paths with which Tailrace means something else, or has not all methods.
OWN_PATHS = ("/v1/sessions", "/v1/projects/", "/v1/models/", "/v1/chat/completions")


SERVED = [Route(one.path, one.endpoint, methods=[one.method]) for one in ROUTES]


def has_route(method: str, path: str) -> bool:
    scope = {"type": "http", "method": method, "path": path, "headers": []}
    return any(route.matches(scope)[0] is Match.FULL for route in SERVED)


@pytest.mark.parametrize(("calls", "fewest"), [(ANTHROPIC_CALLS, 150), (OPENAI_CALLS, 350)])
def test_each_path_of_an_sdk_has_a_route_or_advice(calls: list[tuple[str, str]], fewest: int) -> None:
    """A path of Managed Agents under /v1/sessions is recognised by its beta header (managed_agents.py)."""
    assert len(calls) > fewest
    absent = [
        f"{method} {path}"
        for method, path in calls
        if not has_route(method, path) and advice_for(path) is None and not path.startswith(OWN_PATHS)
    ]
    assert absent == []


@pytest.mark.rule("S14")
def test_the_longest_path_is_looked_up_at_once() -> None:
    """Without a key, a path of 60,000 slashes would stop all streams."""
    began = time.process_time()
    assert advice_for("/" * 60_000) is None
    assert time.process_time() - began < 0.05
