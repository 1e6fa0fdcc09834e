"""The API as an OpenAPI 3.1 document: made from the routes, their docstrings and the Structs that they read and write.

Source: OpenAPI Specification 3.1.1. It is written beside this file by `make schema` and served at /openapi.json.
"""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.routing import Route

from tailrace.gateway.auth.login import COOKIE
from tailrace.gateway.auth.scopes import NEEDS, Need
from tailrace.gateway.error_responses import Envelope
from tailrace.gateway.openapi.operations import OPERATIONS, PARAMETERS, Operation
from tailrace.proto.errors import CODES
from tailrace.proto.records import WebhookPayload

VERSION = "3.1.1"
REF = "#/components/schemas/{name}"
EVENT_STREAM = "text/event-stream"
ABOUT = (
    "Claude's answers, carried from the model to everybody who is reading them. A stream that was cut is taken up with "
    "`Last-Event-ID`, at any gateway, under the same ids. Every error has one body, whatever the protocol."
)

WEBHOOK_HEADERS = {
    "webhook-id": "The turn's id, the same each time that it is told.",
    "webhook-timestamp": "When it was sent, in seconds of Unix time.",
    "webhook-signature": "`v1,` and an HMAC-SHA256 over id, timestamp and body in base64; several joined by spaces.",
}

Json = dict[str, Any]


def document(routes: Sequence[Route], version: str) -> Json:
    """The document of `routes`; raises KeyError for one that gateway/operations.py does not tell of."""
    kinds = {kind for told in OPERATIONS.values() for kind in told.kinds} | {Envelope, WebhookPayload}
    named = sorted(kinds, key=lambda kind: (kind.__module__, kind.__name__))
    schemas, components = msgspec.json.schema_components(named, ref_template=REF)
    # Some routes answer with an object that is another protocol's, or a few fields of their own.
    schema_of = {Any: {"type": "object"}} | dict(zip(named, schemas, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"}):
            told = OPERATIONS[method, route.path]
            paths.setdefault(route.path, {})[method.lower()] = _operation(route, method, told, schema_of)
    return {
        "openapi": VERSION,
        "info": {"title": "Tailrace", "version": version, "description": ABOUT, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "webhooks": {"turn": {"post": _webhook(schema_of[WebhookPayload])}},
        "components": {
            "schemas": components,
            "responses": {
                str(status): {
                    "description": _codes(status),
                    "content": {"application/json": {"schema": schema_of[Envelope]}},
                }
                for status in _refusals()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "login": {"type": "apiKey", "in": "cookie", "name": COOKIE},
            },
        },
    }


def _operation(route: Route, method: str, told: Operation, schema_of: dict[Any, Json]) -> Json:
    summary, _, more = (route.endpoint.__doc__ or "").partition("\n")
    operation: Json = {
        "operationId": f"{method.lower()}{re.sub(r'[^a-z0-9]+', '_', route.path.lower()).rstrip('_')}",
        "tags": [told.tag],
        "summary": re.sub(r"^`[^`]*`(: )?", "", summary),
        "responses": _responses(told, schema_of),
    }
    if more.strip():
        operation["description"] = re.sub(r"\n +", "\n", more.strip())
    names = re.findall(r"{(\w+)}", route.path)
    parameters = [_in_path(name) for name in names] + [PARAMETERS[name] for name in told.parameters]
    if parameters:
        operation["parameters"] = parameters
    if told.asks is not None:
        content = {"application/json": {"schema": schema_of[told.asks]}}
        operation["requestBody"] = {"required": True, "content": content}
    if told.see:
        operation["externalDocs"] = {"url": told.see}
    operation["security"] = _security(NEEDS[method, route.path], told)
    return operation


def _security(need: Need, told: Operation) -> list[Json]:
    """What a credential needs to be, and may do, for it: what the guard asks for. OpenAPI 3.1.1, 4.8.30: roles."""
    if need == "public":
        return []
    return [{"login": [need]}] if told.has_cookie else [{"bearer": [need]}, {"key": [need]}]


def _webhook(schema: Json) -> Json:
    return {
        "operationId": "webhook_turn",
        "tags": ["turns"],
        "summary": "What a turn's webhook is told when it has ended.",
        "description": "Signed as Standard Webhooks says, and told again until it is taken; a session's in order.",
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": meaning}
            for name, meaning in WEBHOOK_HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "2XX": {"description": "It was taken, and is not told again."},
            "410": {"description": "Nobody wants it: it is not told again."},
            "default": {"description": "It is told again, after `Retry-After` if there is one."},
        },
        "security": [],
    }


def _in_path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _responses(told: Operation, schema_of: dict[Any, Json]) -> Json:
    content: Json = {}
    if told.answers is not None:
        content["application/json"] = {"schema": schema_of[told.answers]}
    if told.streams:
        content[told.streams] = _streamed(told.streams)
    responses: Json = {str(told.status): {"description": "As asked for.", **({"content": content} if content else {})}}
    for status, description in told.also.items():
        streamed = {"content": {EVENT_STREAM: _streamed(EVENT_STREAM)}} if status == HTTPStatus.OK else {}
        responses[str(status)] = {"description": description, **streamed}
    return responses | {str(status): {"$ref": f"#/components/responses/{status}"} for status in _refusals()}


def _streamed(media_type: str) -> Json:
    # A schema here would be one of each event, and those stand in docs/asyncapi.json.
    return {} if media_type == EVENT_STREAM else {"schema": {"type": "string"}}


def _refusals() -> list[int]:
    """Every status that means an error. Which of them a route can answer with is nothing that a client could use."""
    return sorted({row.status for row in CODES.values()})


def _codes(status: int) -> str:
    return "One of: " + ", ".join(code for code, row in CODES.items() if row.status == status)
