"""Bodies with one wrong value: each value of each valid body of each route, replaced, left out, renamed or repeated.

The valid bodies are the golden requests, the bodies of the table of routes, and those bodies with one more field of the
OpenAPI document.
"""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.golden.requests import DEFAULTS, read_cases
from tests.harness.json_values import places
from tests.harness.route_table import ROWS

DOCUMENT: Any = msgspec.json.decode((Path(__file__).parents[2] / "features/api_reference/openapi.json").read_bytes())
GOLDEN = {
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "ui": "/api/chat",
    "messages": "/v1/messages",
    "agents": "/api/agui",
}
# Stand for JSON that Python does not write.
RAW = {"<deep>": "[" * 200 + "]" * 200, "<half>": '"\\ud800"', "<huge>": "1e400", "<digits>": "9" * 400}
# The first is the value that most code trips over: neither a list, an object nor a text.
WRONG: list[Any] = [
    *(5, True, None, "x", [], {}, [5], {"a": 5}, [[[5]]], 2**63, 1e308, "", " ", "a\0b", "x" * 30_000, -1, 0, 1.5),
    *([None], [[]], {"": None}, *RAW),
]
SCHEMA_LEVELS_MAX = 4
# Of the requests in an OpenAI batch.
ENDPOINTS = ("/v1/chat/completions", "/v1/responses")
# Names that the caller replaces.
FILE, INPUT_FILE = "<file>", "<input file>"
TEXT = "#sim words=1 rate=0"
TOOLS = [{"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}]
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
SYSTEM = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
CONVERSATION = [
    {"role": "user", "content": [IMAGE, {"type": "text", "text": TEXT}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "sky"}}]},
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "blue"}, IMAGE]},
            {"type": "document", "source": {"type": "file", "file_id": FILE}, "citations": {"enabled": True}},
            {"type": "text", "text": TEXT},
        ],
    },
]
PROMPT = {"model": "claude-sonnet-5-5", "messages": CONVERSATION, "system": SYSTEM, "tools": TOOLS}
OPTIONS = {
    "thinking": {"type": "enabled", "budget_tokens": 1024},
    "tool_choice": {"type": "auto"},
    "stop_sequences": ["x"],
    "output_config": {"effort": "low"},
    "metadata": {"user_id": "ann"},
    "context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
RESULT = [{"type": "text", "text": "blue"}, IMAGE, {"type": "document", "source": {"type": "file", "file_id": FILE}}]
CHAT = {"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": TEXT}]}
RESPONSE = {
    "model": "claude-sonnet-5-5",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": TEXT}]}],
}
FILE_BATCH = {"input_file_id": INPUT_FILE, "endpoint": ENDPOINTS[0], "completion_window": "24h"}
LIMITS = {"requests": 600, "tokens": 100_000, "running": 5, "usd_day": 50.0}


class Body(NamedTuple):
    """A valid body of a route."""

    method: str
    path: str
    body: dict[str, Any]


def _batch(params: Any) -> dict[str, Any]:
    return {"requests": [{"custom_id": "one", "params": params}], "parallel": 2, "metadata": {"team": "a"}}


# Bodies with the values that a route takes as any JSON.
DEEP = [
    Body("POST", "/v1/turns", PROMPT | {"options": OPTIONS, "max_tokens": 2048}),
    Body("POST", "/v1/turns", {"message": TEXT, "schema": SCHEMA, "metadata": {"team": "a"}, "betas": ["x"]}),
    Body("POST", "/v1/turns", {"prompt": {"name": "words", "variables": {"n": 1}}}),
    Body("POST", "/v1/messages", PROMPT | OPTIONS | {"max_tokens": 2048}),
    Body("POST", "/v1/messages/count_tokens", PROMPT | OPTIONS),
    Body("POST", "/v1/turn-batches", _batch(PROMPT | {"options": OPTIONS, "max_tokens": 2048})),
    Body("POST", "/v1/turn-batches", _batch({"prompt": {"name": "words", "variables": {"n": 1}}})),
    Body("POST", "/v1/messages/batches", _batch(PROMPT | OPTIONS | {"max_tokens": 2048})),
    Body("POST", "/v1/batches", FILE_BATCH),
    Body("POST", "/v1/sessions", {"title": "Rivers", "system_prompt": SYSTEM}),
    Body("POST", "/v1/sessions/{session}/calls/{call}", {"result": RESULT}),
    Body("POST", "/v1/sessions/{session}/calls/{call}", {"decision": "denied", "reason": "night"}),
    Body("POST", "/v1/turns/{turn}/steer", {"message": [{"type": "text", "text": TEXT}, IMAGE], "at": "boundary"}),
    Body("POST", "/v1/admin/keys", {"tenant": "acme", "scopes": ["read"], "expires_in_s": 60, "limits": LIMITS}),
    Body("PUT", "/v1/admin/tenants/{tenant}/limits", {"limits": LIMITS}),
]


class Place(NamedTuple):
    """A value in a body."""

    body: Body
    where: str
    """Its path, with the types of the objects on the way."""
    number: int
    """Its number among the `places` of the body."""


class WrongBody(NamedTuple):
    """A body of a route with one change. `name` says where and what."""

    method: str
    path: str
    name: str
    body: bytes


def valid_bodies() -> list[Body]:
    """Returns valid bodies of all routes in the document; those that are refused for another reason come last."""
    golden = [
        (case, Body("POST", GOLDEN[api], DEFAULTS[api] | case.body)) for api in GOLDEN for case in read_cases(api)
    ]
    golden.sort(key=lambda pair: pair[0].refused is not None)
    plain = [Body(method, path, row.body) for (method, path), row in ROWS.items() if row.body is not None]
    return [*plain, *DEEP, *(body for _, body in golden), *(more for one in plain for more in _with_fields(one))]


def places_of(bodies: list[Body]) -> list[Place]:
    """Returns the places in `bodies`. Equal places of a route come once."""
    found: dict[tuple[str, str], Place] = {}
    for body in bodies:
        for number, where in enumerate(_names(body.body)):
            found.setdefault((body.path, where), Place(body, where, number))
    return list(found.values())


def _names(value: Any, where: str = "") -> Iterator[str]:
    """Yields the name of each of the `places` of a value: its path, with the types of the objects on the way."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    kind = (value.get("type") or value.get("role")) if isinstance(value, dict) else None
    for key, inner in items:
        name = f"{where}[]" if isinstance(value, list) else f"{where}{f'<{kind}>' if kind else ''}.{key}"
        yield name
        yield from _names(inner, name)


Change = Callable[[Any, Any], None]


def _replace(value: Any) -> Change:
    return lambda inner, key: inner.__setitem__(key, value)


def _repeat(count: int) -> Change:
    return lambda inner, key: inner.__setitem__(key, [inner[key]] * count)


def _leave_out(inner: Any, key: Any) -> None:
    del inner[key]


def _rename(inner: Any, key: Any) -> None:
    if isinstance(inner, dict):
        inner[f"{key}x"] = inner.pop(key)


def _double(inner: Any, key: Any) -> None:
    if isinstance(inner, dict):
        inner["<twice>"] = inner[key]


CHANGES: dict[str, Change] = {f"= {str(value)[:20]!r}": _replace(value) for value in WRONG} | {
    "left out": _leave_out,
    "renamed": _rename,
    "twice": _double,
    **{f"in a list of {count}": _repeat(count) for count in (1, 2, 50)},
}


def change(place: Place, name: str) -> WrongBody:
    """Returns the body with the change `name` of CHANGES at a place."""
    body = copy.deepcopy(place.body.body)
    inner, key = list(places(body))[place.number]
    CHANGES[name](inner, key)
    text = json.dumps(body).replace('"<twice>"', json.dumps(key))
    for raw, literal in RAW.items():
        text = text.replace(f'"{raw}"', literal)
    text = text.replace('"hi"', json.dumps(TEXT))
    return WrongBody(place.body.method, place.body.path, f"{place.where} {name}", text.encode())


def _with_fields(plain: Body) -> Iterator[Body]:
    """Yields the body with each field of its schema that it has not, once for each type of the field."""
    operation = DOCUMENT["paths"][plain.path][plain.method.lower()]
    schema = _resolve(operation["requestBody"]["content"]["application/json"]["schema"])
    for name, field in schema.get("properties", {}).items():
        if name not in plain.body:
            for value in _samples(field, SCHEMA_LEVELS_MAX):
                yield plain._replace(body=plain.body | {name: value})


def _resolve(schema: Any) -> Any:
    while "$ref" in schema:
        schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def _samples(schema: Any, levels: int) -> Iterator[Any]:
    """Yields a value for each type that a schema allows."""
    schema = _resolve(schema)
    for one in schema.get("anyOf", ()) or schema.get("oneOf", ()):
        yield from _samples(one, levels)
    if "enum" in schema or "const" in schema:
        yield schema.get("const", schema.get("enum", [None])[0])
        return
    match schema.get("type"):
        case "string":
            yield "x"
        case "integer" | "number":
            yield 1
        case "boolean":
            yield True
        case "array" if levels:
            yield list(_samples(schema.get("items", {}), levels - 1))
        case "object" if levels:
            fields = schema.get("properties", {})
            yield {name: next(_samples(field, levels - 1), None) for name, field in fields.items()} or {"x": "x"}
