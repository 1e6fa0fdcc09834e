"""The OpenAPI document and the reference page: every route is in them, and the page runs no code."""

import re
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from jsonschema_rs import Draft202012Validator
from starlette import routing
from starlette.requests import Request

from tailrace.features.admin.administration import without_hash
from tailrace.features.api_reference import gateway as routes
from tailrace.features.api_reference.gateway import document
from tailrace.features.api_reference.reference_page import render_page
from tailrace.features.common.budgets import ReachedBudget
from tailrace.features.files.gateway import FILE_ID
from tailrace.features.gateway import DIALECTS, ROUTES
from tailrace.features.limits.records import BudgetWebhook
from tailrace.features.logins.logins import Access
from tailrace.features.page.gateway import endpoints_of
from tailrace.features.tickets.tickets import Ticket
from tailrace.features.webhooks import payload, signature
from tailrace.gateway.auth.api_key import KEY_ID, ApiKey
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.http.last_event_id import QUERY_NAMES
from tailrace.gateway.http.route import SSE, Route
from tailrace.proto.ids import Tenant
from tailrace.proto.models import find_model
from tailrace.proto.records import TurnRecord, record_from_fold
from tailrace.protocols.common.examples import BATCH, FILE, MODEL, PARENT, TURN
from tests.harness.processes import CHECKOUT
from tests.harness.turn_builder import KEY, completed_turn
from tools.asyncapi import render_example, render_stream, short_turn
from tools.openapi import examples

DOCUMENT: dict[str, Any] = msgspec.json.decode(document())
METHODS = [(route.method, route.path) for route in ROUTES]
# The events of OpenAI's protocols have no `id:`. CopilotKit connects anew, from the beginning of the thread.
WITHOUT_IDS = {
    *("/v1/chat/completions", "/v1/responses", "/v1/responses/{response_id}"),
    "/api/copilotkit/agent/{agent}/connect",
}


def references(part: object) -> list[str]:
    match part:
        case {"$ref": str(ref)}:
            return [ref]
        case dict():
            return [ref for value in part.values() for ref in references(value)]
        case list():
            return [ref for value in part for ref in references(value)]
        case _:
            return []


def test_each_stream_whose_events_have_an_id_takes_the_last_one_back() -> None:
    """From an EventSource in the header, from a polyfill in the query."""
    names = {("header", "Last-Event-ID"), *(("query", name) for name in QUERY_NAMES)}
    streams = [route for route in ROUTES if route.streams == SSE and route.path not in WITHOUT_IDS]
    assert len(streams) > 5
    for route in streams:
        assert names <= {(one.place, one.name) for one in route.parameters}, route.path


def schemas_in(part: Any) -> list[dict[str, Any]]:
    """Returns the schemas of `part`: the components, the parameters and the bodies."""
    match part:
        case {"properties": dict(properties), **others}:
            return [part, *schemas_in(list(properties.values())), *schemas_in(list(others.values()))]
        case dict():
            found = [
                one for name, value in part.items() if name not in ("example", "examples") for one in schemas_in(value)
            ]
            return [part, *found] if {"type", "enum", "anyOf"} & set(part) else found
        case list():
            return [one for value in part for one in schemas_in(value)]
        case _:
            return []


def test_document_has_exactly_the_routes() -> None:
    documented = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert documented == set(METHODS)


def test_operation_ids_are_unique() -> None:
    """Generated clients use them as names."""
    names = [one["operationId"] for methods in DOCUMENT["paths"].values() for one in methods.values()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


def test_generated_clients_get_distinct_names() -> None:
    """Generators derive them from names in the document."""
    names = list(DOCUMENT["components"]["schemas"])
    assert [name for name in names if not name.isalnum()] == []
    # In Go, openapi-generator makes a function NewKey of a schema Key.
    assert set(names) & {f"New{name}" for name in names} == set()
    for methods in DOCUMENT["paths"].values():
        for one in methods.values():
            parameters = [(part["in"], re.sub(r"\W", "", part["name"])) for part in one.get("parameters", ())]
            assert len(parameters) == len(set(parameters)), one["operationId"]
    # A file for each tag: a second one would replace it.
    tags = {one["tags"][0] for methods in DOCUMENT["paths"].values() for one in methods.values()}
    assert DOCUMENT["webhooks"]["turn"]["post"]["tags"][0] not in tags


def test_schemas_have_the_keywords_that_generators_need() -> None:
    """The reasons are in portable_schemas.py. openapi-generator refuses a license without an identifier."""
    found = schemas_in(DOCUMENT)
    assert len(found) > 1000
    assert [one for one in found if "default" in one] == []
    assert [one for one in found if "enum" in one and one.get("type") != "string"] == []
    assert [one for one in found if one.get("type") == "null" and "description" in one] == []
    assert [
        one for one in found if one.get("type") == "object" and not {"properties", "additionalProperties"} & set(one)
    ] == []
    assert [one for one in found if one.get("type") == "array" and not {"items", "prefixItems"} & set(one)] == []
    integers = [one for one in schemas_in(DOCUMENT["components"]) if one.get("type") == "integer"]
    assert [one for one in integers if one.get("format") != "int64"] == []
    assert DOCUMENT["info"]["license"]["identifier"] == "Apache-2.0"


def test_generated_clients_get_one_type_of_response() -> None:
    """hey-api reads each response as an event stream if one status is documented as such."""
    contents = {
        f"{method} {path}": [one.get("content", {}) for status, one in operation["responses"].items() if status < "300"]
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }
    assert [name for name, found in contents.items() if len([one for one in found if one]) > 1] == []
    # Only text is read as a string.
    media = {
        (kind, one["schema"].get("format"))
        for found in contents.values()
        for content in found
        for kind, one in content.items()
        if one.get("schema", {}).get("type") == "string"
    }
    assert {kind for kind, form in media if form == "binary"} == {"application/octet-stream", "application/x-ndjson"}
    assert all(kind.startswith("text/") for kind, form in media if form != "binary")


def test_fields_of_a_response_are_required_unless_they_can_be_left_out() -> None:
    record = DOCUMENT["components"]["schemas"]["TurnRecord"]
    assert set(record["required"]) == set(record["properties"])
    # Counts of 0 are left out.
    assert DOCUMENT["components"]["schemas"]["Usage"]["required"] == []
    # Bodies of requests keep their optional fields.
    assert DOCUMENT["components"]["schemas"]["NewTurn"]["required"] == []
    assert (
        "By default `reject`." in DOCUMENT["components"]["schemas"]["NewTurn"]["properties"]["on_busy"]["description"]
    )


STREAMS = [route for route in ROUTES if route.streams == SSE]


@pytest.mark.parametrize("route", STREAMS, ids=lambda route: f"{route.method} {route.path}")
def test_the_events_of_each_stream_have_types(route: Route) -> None:
    """A generated client has one for each event, and tells them apart by `type`, where the protocol has that."""
    content = DOCUMENT["paths"][route.path][route.method.lower()]["responses"]["200"]["content"][SSE]
    name = content["schema"]["$ref"].rpartition("/")[2]
    union = DOCUMENT["components"]["schemas"][name]
    if name in ("OpenaiChatUsageStreamEvent", "ContentStreamEvent", "JobStreamEvent"):
        assert len(union["anyOf"]) > 1
    else:
        assert [{"$ref": ref} for ref in union["discriminator"]["mapping"].values()] == union["oneOf"]
    dialect = DIALECTS[route.events if isinstance(route.events, str) else "tailrace"]
    validator = Draft202012Validator(content["schema"] | {"components": DOCUMENT["components"]})
    rendered = [payload for _, payload in render_example(dialect) if isinstance(payload, dict)]
    assert [str(one) for payload in rendered for one in validator.iter_errors(payload)] == []
    # The example is a whole stream.
    assert content["example"] == "".join(render_stream(dialect, short_turn()))


def test_each_event_of_the_golden_turns_has_a_type_and_no_other_field() -> None:
    components = DOCUMENT["components"]
    validator = Draft202012Validator({"$ref": "#/components/schemas/SessionStreamEvent", "components": components})
    mapping = components["schemas"]["SessionStreamEvent"]["discriminator"]["mapping"]
    known = {name: components["schemas"][ref.rpartition("/")[2]] for name, ref in mapping.items()}
    seen = set()
    for page in (CHECKOUT / "tests/golden").glob("*.tailrace.txt"):
        for line in re.findall("^data: (.*)$", page.read_text(), re.MULTILINE):
            event = msgspec.json.decode(line)
            assert [error.message for error in validator.iter_errors(event)] == []
            assert set(event) <= set(known[event["type"]]["properties"])
            seen.add(event["type"])
    assert seen == set(known) - {"session"}


def test_the_stream_of_a_post_is_documented_without_a_second_type_of_response() -> None:
    responses = DOCUMENT["paths"]["/v1/turns"]["post"]["responses"]
    assert "TurnEvent" in responses["200"]["description"]
    assert "content" not in responses["200"]


def test_everything_has_a_description() -> None:
    """Each parameter and property: those of Structs are the docstrings of their fields. An operation has a summary."""
    parts = {
        f"{method} {path} {part['name']}": part
        for path, methods in DOCUMENT["paths"].items()
        for method, one in methods.items()
        for part in one.get("parameters", ())
    }
    parts |= {
        f"{name}.{field}": schema
        for name, struct in DOCUMENT["components"]["schemas"].items()
        for field, schema in struct.get("properties", {}).items()
    }
    assert [name for name, part in parts.items() if not part.get("description")] == []
    summaries = [one["summary"] for methods in DOCUMENT["paths"].values() for one in methods.values()]
    # It is the endpoint's docstring without method and path.
    assert [text for text in summaries if not text[:1].isupper()] == []


def test_every_example_is_valid() -> None:
    """Each JSON body, JSON response and property without a named schema has one that its schema accepts."""
    examples = {
        f"{method} {path} {status}": (content["schema"], content["example"])
        for path, methods in DOCUMENT["paths"].items()
        for method, one in methods.items()
        for status, body in {"body": one.get("requestBody", {}), **one["responses"]}.items()
        for media_type, content in body.get("content", {}).items()
        if media_type == "application/json" and (status == "body" or status < "400")
    }
    examples |= {
        f"{name}.{field}": (schema, schema["examples"][0])
        for name, struct in DOCUMENT["components"]["schemas"].items()
        for field, schema in struct.get("properties", {}).items()
        if "examples" in schema or not references(schema)
    }
    # A generated client has only the fields that the schema names.
    for schema, example in examples.values():
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            assert set(example) <= set(DOCUMENT["components"]["schemas"][name].get("properties", example)), name
    # One validator for all: each would read all components again.
    schemas = {name: schema for name, (schema, _) in examples.items()}
    validator = Draft202012Validator({"properties": schemas, "components": DOCUMENT["components"]})
    problems = validator.iter_errors({name: example for name, (_, example) in examples.items()})
    assert [f"{error.instance_path}: {error.message}" for error in problems] == []


def test_every_row_of_the_examples_is_used() -> None:
    used = {
        key
        for name, struct in DOCUMENT["components"]["schemas"].items()
        for field, schema in struct.get("properties", {}).items()
        for key in (f"{name.rpartition('.')[2]}.{field}", field)
        if name not in examples.WHOLE and schema.get("examples") == [examples.EXAMPLES.get(key)]
    }
    assert set(examples.EXAMPLES) - used == set()


def test_examples_are_read_by_the_parsers_of_the_product() -> None:
    """A schema only says that an id is a string."""
    for made in (TURN, PARENT, BATCH):
        assert (str(UUID(made)), UUID(made).version) == (made, 7)
    assert FILE_ID.fullmatch(FILE)
    assert KEY_ID.fullmatch(examples.KEY_ID)
    assert examples.TICKET.startswith(Ticket.prefix.decode())
    assert examples.EXAMPLES["access_token"].startswith(Access.prefix.decode())
    record = msgspec.convert(examples.WHOLE["TurnRecord"], TurnRecord)
    assert msgspec.to_builtins(record)["duration_s"] == examples.WHOLE["TurnRecord"]["duration_s"]
    after = examples.WHOLE["AuditEntry"]["after"]
    assert without_hash(msgspec.convert({**after, "sha256": "0" * 64}, ApiKey)) == after
    assert (model := find_model(MODEL)) is not None
    assert model.retires is None


def test_an_operation_has_one_credential() -> None:
    """hey-api sends all that an operation lists, and a request with two credentials is refused."""
    operations = [one for methods in DOCUMENT["paths"].values() for one in methods.values()]
    assert {len(one["security"]) for one in operations} == {0, 1}


def test_operation_and_page_name_the_scope_of_the_route() -> None:
    page = render_page(DOCUMENT)
    for route in ROUTES:
        operation = DOCUMENT["paths"][route.path][route.method.lower()]
        named = {scope for one in operation["security"] for scopes in one.values() for scope in scopes}
        assert named == ({route.need} if route.need != "public" else set()), (route.method, route.path)
        shown = page.partition(f'<details id="{operation["operationId"]}">')[2].partition("</details>")[0]
        sentence = "Needs no key." if route.need == "public" else f"Needs the scope <code>{route.need}</code>."
        assert sentence in shown, (route.method, route.path)


def test_every_component_is_a_json_schema_whose_refs_resolve() -> None:
    """OpenAPI 3.1 schemas are JSON Schema 2020-12."""
    for name in DOCUMENT["components"]["schemas"]:
        Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})
    for ref in references(DOCUMENT):
        found: Any = DOCUMENT
        for step in ref.removeprefix("#/").split("/"):
            found = found[step]


def test_parameter_dialect_lists_all_dialects() -> None:
    """A generated client has their names."""
    parameters = DOCUMENT["paths"]["/v1/turns/{turn}/events"]["get"]["parameters"]
    (dialect,) = [one for one in parameters if one["name"] == "dialect"]
    assert dialect["schema"] == {"type": "string", "enum": list(DIALECTS)}


@pytest.mark.rule("S8")
def test_reference_page_has_every_route_and_works_offline() -> None:
    """It has no script and no external address."""
    page = render_page(DOCUMENT)
    assert all(f"<code>{path}</code>" in page for _, path in METHODS)
    tags = {one["tags"][0] for methods in DOCUMENT["paths"].values() for one in methods.values()}
    assert all(f'<li><a href="#{tag}">' in page and f'id="{tag}"' in page for tag in tags)
    # Backticks in docstrings become code elements.
    assert "`" not in page
    assert re.findall(r"<script|src=|url\(|@import|\bon[a-z]+=", page) == []
    assert set(re.findall(r'href="([^"#]+)"', page)) == {
        "/openapi.json",
        "/page/icon.svg",
        "/",
        "/docs",
        "/guides",
        "/ops",
        "/admin",
    }


async def test_reference_page_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rendering blocks all streams for some milliseconds, and the route needs no key."""
    request = Request({"type": "http", "method": "GET", "path": "/docs", "headers": []})
    first = await routes.docs(request)
    monkeypatch.setattr(routes, "render_page", pytest.fail)
    assert (await routes.docs(request)).body == first.body


@pytest.mark.rule("S8")
def test_reference_page_escapes_docstrings() -> None:
    """Markup is shown as text, and text in backticks as code."""
    paths = {"/x": {"get": {"operationId": "x", "tags": ["<i>"], "summary": "<b>& `<b>`", "responses": {}}}}
    page = render_page({**DOCUMENT, "paths": paths})
    assert "&lt;b&gt;&amp;" in page
    assert "<code>&lt;b&gt;</code>" in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_webhook_body_matches_its_schema() -> None:
    """A receiver that is generated from the document can parse it."""
    post = DOCUMENT["webhooks"]["turn"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/WebhookPayload"}
    body = payload.render(record_from_fold(KEY, completed_turn("Light scatters.").turn))
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(msgspec.json.decode(body))
    headers = signature.sign("turn-1", 1, body, [b"secret"])
    assert {parameter["name"] for parameter in post["parameters"]} == set(headers)


def test_the_webhook_of_a_budget_matches_its_schema() -> None:
    reached = ReachedBudget(
        tenant=Tenant("acme"), of="key", key="key_1", budget="usd_day", percent=80, limit_usd=5.0, spent_usd=4.1,
        is_refused=False, renews_at=datetime.now(UTC),
    )  # fmt: skip
    webhook = BudgetWebhook("budget.reached", datetime.now(UTC), reached, {"limits": "/v1/limits"})
    schema = DOCUMENT["webhooks"]["budget"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/BudgetWebhook"}
    body = msgspec.json.decode(msgspec.json.encode(webhook))
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(body)


def test_index_lists_every_route_with_its_methods() -> None:
    listed = endpoints_of([routing.Route(one.path, one.endpoint, methods=[one.method]) for one in ROUTES])
    assert {(method, path) for path, methods in listed.items() for method in methods} == set(METHODS)
    assert listed["/v1/sessions/{session}"] == ["GET", "PATCH", "DELETE"]


@pytest.mark.parametrize(
    ("method", "path", "is_auto"),
    [
        ("post", "/v1/turns", True),
        ("post", "/v1/files", True),
        *(("post", path, False) for path in ("/v1/turn-batches", "/v1/batches", "/v1/messages/batches", "/chat")),
    ],
)
def test_the_document_says_which_routes_refuse_an_automatic_key(method: str, path: str, is_auto: bool) -> None:
    (key,) = [one for one in parameters(method, path) if one["name"] == "Idempotency-Key"]
    assert ("`auto` is refused" not in key["description"], "`auto` derives" in key["description"]) == (is_auto, is_auto)


def test_the_cursor_of_a_turn_may_have_the_proof_of_a_ticket() -> None:
    (last,) = [one for one in parameters("get", "/v1/turns/{turn}/events") if one["name"] == "Last-Event-ID"]
    pattern = last["schema"]["pattern"]
    proof = TokenSigner(b"a secret of tests").proof("token")
    assert [bool(re.search(pattern, cursor)) for cursor in ("17", f"{proof}.17", f"{proof}17", ".17")] == [
        *(True, True),
        *(False, False),
    ]


def parameters(method: str, path: str) -> list[dict[str, Any]]:
    """Returns the parameters of an operation."""
    found: list[dict[str, Any]] = DOCUMENT["paths"][path][method]["parameters"]
    return found
