"""Builds the OpenAPI 3.1 document from the routes, their docstrings and the Structs of their bodies.

Source: OpenAPI Specification 3.1.1. `make schema` writes the document to features/api_reference/openapi.json.
"""

import re
from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from tailrace.features.gateway import DIALECTS
from tailrace.features.limits.records import BudgetWebhook
from tailrace.features.webhooks.payload import WebhookPayload
from tailrace.gateway.clients.native.event_types import TurnEvent
from tailrace.gateway.http.error_responses import Envelope
from tailrace.gateway.http.route import SSE, Parameter, Route
from tailrace.proto.errors import CODES
from tools.openapi.descriptions import describe, example_of, structs_in
from tools.openapi.examples import BODIES, EXAMPLES, IN_PATH, STREAMS
from tools.openapi.portable_schemas import always_written, rewrite
from tools.openapi.rendered_events import add_dialect, example_stream, name_of

OPENAPI_VERSION = "3.1.1"
REF = "#/components/schemas/{name}"
ABOUT = (
    "Streams Claude's answers to any number of readers. A stream that was cut can be resumed with `Last-Event-ID` at "
    "any gateway. Every error has the same body in all protocols."
)

BEARER = "An API key, or a token. A key may be sent in `x-api-key` instead; a request with both headers is refused."
LICENSE = {"name": "Apache License 2.0", "identifier": "Apache-2.0"}
WEBHOOK_HEADERS = {
    "webhook-id": "The id of the turn, or of the notice: the same for every delivery.",
    "webhook-timestamp": "The time of the delivery, in Unix seconds.",
    "webhook-signature": "`v1,` and the base64 HMAC-SHA256 of id, timestamp and body; several are separated by spaces.",
}
OF_SESSION = "The turn; only in the stream of a session."
OF_TURN = "The request to a turn's webhook after the turn has ended."
OF_BUDGET = "The request to the tenant's URL in `TAILRACE_WEBHOOK_URLS` when a share of a budget is spent."

Json = dict[str, Any]

# An object of another protocol, or one without a Struct.
ANY_OBJECT: Json = {"type": "object", "additionalProperties": True}


def build_document(routes: Sequence[Route], version: str) -> Json:
    """Returns the document of `routes`, with the product's version."""
    bodies = {route.body for route in routes} - {None}
    results = {route.result for route in routes if isinstance(route.result, type)}
    unions = {name_of(route.events): route.events for route in routes if route.streams == SSE}
    events = {name: kind for name, kind in unions.items() if not isinstance(kind, str)}
    kinds = bodies | results | {Envelope, WebhookPayload, BudgetWebhook}
    named = sorted(kinds, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components([*named, *events.values()], ref_template=REF)
    kinds |= set(structs_in(events.values()))
    describe(components, kinds)
    components |= dict(zip(events, schemas[len(named) :], strict=True))
    for struct in get_args(TurnEvent):
        of_session = {"type": "string", "description": OF_SESSION, "examples": [EXAMPLES["turn"]]}
        components[struct.__name__]["properties"].setdefault("turn", of_session)
    read = {struct.__name__ for struct in structs_in(bodies)}
    for struct in structs_in(kinds):
        if struct.__name__ not in read and "properties" in components[struct.__name__]:
            components[struct.__name__]["required"] = always_written(struct)
    for name, schema in components.items():
        rewrite(schema, is_read=name in read)
    without_struct: dict[type, Json] = {dict: ANY_OBJECT, list: {"type": "array", "items": ANY_OBJECT}}
    schema_of = without_struct | dict(zip(named, schemas[: len(named)], strict=True))
    for name, dialect in unions.items():
        if isinstance(dialect, str):
            add_dialect(components, name, DIALECTS[dialect])
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of, components)
    cookie = next((one.cookie for one in routes if one.cookie), None)
    return {
        "openapi": OPENAPI_VERSION,
        "info": {"title": "Tailrace", "version": version, "description": ABOUT, "license": LICENSE},
        "paths": paths,
        "webhooks": {
            "turn": {"post": _webhook("turn", OF_TURN, schema_of[WebhookPayload])},
            "budget": {"post": _webhook("budget", OF_BUDGET, schema_of[BudgetWebhook])},
        },
        "components": {
            "schemas": components,
            "responses": {str(status): _error(status, schema_of) for status in _error_statuses()},
            "securitySchemes": {
                # `x-api-key` is left out: clients of hey-api would send both headers, which the gateway refuses.
                "bearer": {"type": "http", "scheme": "bearer", "description": BEARER},
                **({"login": {"type": "apiKey", "in": "cookie", "name": cookie}} if cookie else {}),
            },
        },
    }


def _operation(route: Route, schema_of: dict[Any, Json], components: Json) -> Json:
    summary, _, more = (route.endpoint.__doc__ or "").partition("\n")
    operation: Json = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z0-9]+', '_', route.path.lower()).rstrip('_')}",
        "tags": [route.section.tag],
        "summary": _capitalise(re.sub(r"^`[^`]*`(, `[^`]*`)*(: )?", "", summary)),
        "responses": _responses(route, schema_of),
    }
    if route.render_refusal is not None:
        events = {SSE: _stream_content(route)}
        operation["responses"] |= {str(status): _error(status, schema_of, events) for status in _error_statuses()}
    if more.strip():
        operation["description"] = re.sub(r"\n +", "\n", more.strip())
    names = re.findall(r"{(\w+)}", route.path)
    parameters = [_path_parameter(name) for name in names] + [
        _parameter(one) for one in route.parameters if not one.is_spelling
    ]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of[route.body]}},
        }
    elif route.form is not None:
        operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": route.form}}}
    if route.section.reference:
        operation["externalDocs"] = {"url": route.section.reference}
    _add_examples(operation, route, components)
    # OpenAPI 3.1.1, 4.8.30: the credential, with the scopes that the guard of the route requires.
    credential = "login" if route.cookie else "bearer"
    operation["security"] = [] if route.need == "public" else [{credential: [route.need]}]
    return operation


def _add_examples(operation: Json, route: Route, components: Json) -> None:
    """Adds an example to each media type of the request and of the successful response that has one."""
    if route.body is not None:
        operation["requestBody"]["content"]["application/json"]["example"] = BODIES[route.body.__name__]
    for media_type, content in operation["responses"][str(route.status)].get("content", {}).items():
        if media_type == SSE:
            dialect = route.events if isinstance(route.events, str) else "tailrace"
            content["example"] = example_stream(DIALECTS[dialect])
        elif media_type in STREAMS:
            content["example"] = STREAMS[media_type]
        elif media_type == "application/json":
            is_struct = isinstance(route.result, type)
            content["example"] = example_of(content["schema"], components) if is_struct else route.result


def _capitalise(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _webhook(name: str, summary: str, schema: Json) -> Json:
    return {
        "operationId": f"webhook_{name}",
        # A tag of its own: openapi-generator would overwrite the file of the tag `turns` with the webhook alone.
        "tags": ["webhooks"],
        "summary": summary,
        "description": (
            "Signed according to Standard Webhooks, and delivered at least once; in order within a session. Repeated "
            "after any status except 2xx, or 15 s without a response: after 5 s, 10 s, 20 s and so on, up to an hour, "
            "or after `Retry-After`. Given up a day after the event, sooner if the log keeps turns for less time, and "
            "at once after a 410. The body of the response is not read, and redirects are not followed."
        ),
        "parameters": [
            {"name": name, "in": "header", "required": True, "schema": {"type": "string"}, "description": meaning}
            for name, meaning in WEBHOOK_HEADERS.items()
        ],
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "2XX": {"description": "Accepted: it is not sent again."},
            "410": {"description": "Rejected for good: it is not sent again."},
            "default": {"description": "It is sent again, after `Retry-After` if there is one."},
        },
        "security": [],
    }


def _path_parameter(name: str) -> Json:
    meaning, value = IN_PATH[name]
    schema = {"type": "string", "minLength": 1}
    return {"name": name, "in": "path", "required": True, "description": meaning, "schema": schema, "example": value}


def _parameter(parameter: Parameter) -> Json:
    return {"name": parameter.name, "in": parameter.place, **parameter.documented}


def _responses(route: Route, schema_of: dict[Any, Json]) -> Json:
    content: Json = {}
    if route.result is not None:
        kind = route.result if isinstance(route.result, type) else type(route.result)
        content["application/json"] = {"schema": schema_of[kind]}
    if route.streams:
        content[route.streams] = _stream_content(route)
    responses: Json = {str(route.status): {"description": "Success.", **({"content": content} if content else {})}}
    responses |= {str(status): {"description": description} for status, description in route.statuses.items()}
    return responses | {str(status): {"$ref": f"#/components/responses/{status}"} for status in _error_statuses()}


def _error(status: int, schema_of: dict[Any, Json], more: Json | None = None) -> Json:
    """Returns an error response: the envelope, and the media types of `more`."""
    content = {"application/json": {"schema": schema_of[Envelope]}, **(more or {})}
    return {"description": _error_codes(status), "content": content}


def _stream_content(route: Route) -> Json:
    # The schema is that of one event, as client generators read it: OpenAPI 3.1 has no `itemSchema`.
    media_type = route.streams
    if media_type == SSE:
        return {"schema": {"$ref": REF.format(name=name_of(route.events))}}
    # OpenAPI 3.1 needs no `binary`, but client generators do: they read only text as a string.
    return {"schema": {"type": "string"} | ({} if media_type.startswith("text/") else {"format": "binary"})}


def _error_statuses() -> list[int]:
    """Returns every status of an error. They are listed for all routes: clients need one error handler."""
    return sorted({row.status for row in CODES.values()})


def _error_codes(status: int) -> str:
    return "One of: " + ", ".join(code for code, row in CODES.items() if row.status == status)
