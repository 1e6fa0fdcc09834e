"""The API's document: every route is in it, it is what OpenAPI 3.1 wants, and the page made of it runs nothing."""

import re
from typing import Any

import msgspec
import pytest
from jsonschema_rs import Draft202012Validator
from starlette.requests import Request

from tailrace.gateway.app import ROUTES
from tailrace.gateway.auth.scopes import NEEDS
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.gateway.openapi import reference_page as api_page
from tailrace.gateway.openapi.operations import OPERATIONS, PARAMETERS
from tailrace.gateway.resources import docs
from tailrace.gateway.resources.docs import document
from tailrace.persistence.webhooks import payload, signature
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.records import record_from_fold
from tailrace.proto.subjects import TurnKey
from tests.handwritten import answered
from tests.routes import ROWS

DOCUMENT: dict[str, Any] = msgspec.json.decode(document())
METHODS = [(method, route.path) for route in ROUTES for method in sorted((route.methods or set()) - {"HEAD"})]


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


def test_every_route_is_told_of() -> None:
    """Nothing more and nothing less than what is served."""
    assert set(OPERATIONS) == set(METHODS)
    told = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert told == set(METHODS)


def test_every_operation_has_a_name_of_its_own() -> None:
    """Clients are generated from them."""
    names = [one["operationId"] for methods in DOCUMENT["paths"].values() for one in methods.values()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch("[a-z0-9_]+", name) for name in names)


def test_every_operation_says_what_it_does() -> None:
    """In the words of its own docstring, without the path that stands beside them."""
    for path, methods in DOCUMENT["paths"].items():
        for method, one in methods.items():
            assert one["summary"], (method, path)
            assert "`GET" not in one["summary"]


def test_what_asks_for_no_key_says_so() -> None:
    """And nothing else does: the same rows that the tests of tenants walk."""
    public = {
        (method.upper(), path)
        for path, methods in DOCUMENT["paths"].items()
        for method, one in methods.items()
        if one.get("security") == []
    }
    assert public == {route for route, row in ROWS.items() if row.is_public}


def test_an_operation_names_the_scope_that_its_route_asks_for() -> None:
    """The guard's own table; a person reads it on the page."""
    page = api_page.page(DOCUMENT)
    for (method, path), need in NEEDS.items():
        operation = DOCUMENT["paths"][path][method.lower()]
        named = {scope for one in operation["security"] for scopes in one.values() for scope in scopes}
        assert named == ({need} if need != "public" else set()), (method, path)
        shown = page.partition(f'<details id="{operation["operationId"]}">')[2].partition("</details>")[0]
        said = "Asks for no key." if need == "public" else f"Needs the scope <code>{need}</code>."
        assert said in shown, (method, path)


def test_every_reference_leads_somewhere() -> None:
    for ref in references(DOCUMENT):
        found: Any = DOCUMENT
        for step in ref.removeprefix("#/").split("/"):
            found = found[step]


@pytest.mark.parametrize("name", DOCUMENT["components"]["schemas"])
def test_every_shape_is_a_json_schema(name: str) -> None:
    """OpenAPI 3.1 schemas are JSON Schema 2020-12."""
    Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]})


def test_no_parameter_is_told_of_that_no_route_has() -> None:
    assert {name for told in OPERATIONS.values() for name in told.parameters} == set(PARAMETERS)


def test_the_page_shows_no_backticks() -> None:
    """They are how docstrings write code, and mean nothing to who reads HTML."""
    assert "`" not in api_page.page(DOCUMENT)


def test_a_dialect_is_one_of_those_that_there_are() -> None:
    """Whoever generates a client from the document gets the names with it."""
    parameters = DOCUMENT["paths"]["/v1/turns/{turn}/events"]["get"]["parameters"]
    (dialect,) = [one for one in parameters if one["name"] == "dialect"]
    assert dialect["schema"] == {"type": "string", "enum": list(DIALECTS)}


@pytest.mark.rule("S8")
def test_the_page_has_every_route_and_runs_nothing() -> None:
    """It works offline: no script, no address but its own."""
    page = api_page.page(DOCUMENT)
    assert all(f"<code>{path}</code>" in page for _, path in METHODS)
    assert re.findall(r"<script|src=|url\(|@import|\bon[a-z]+=", page) == []
    assert set(re.findall(r'href="([^"#]+)"', page)) == {"/openapi.json"}


async def test_the_page_is_made_once_however_often_strangers_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes some milliseconds, in which every stream stands still, and nobody needs a key for it."""
    asked = Request({"type": "http", "method": "GET", "path": "/docs", "headers": []})
    first = await docs.docs(asked)
    monkeypatch.setattr(api_page, "page", pytest.fail)
    assert (await docs.docs(asked)).body == first.body


@pytest.mark.rule("S8")
def test_what_a_docstring_says_is_text_on_the_page() -> None:
    """Markup in it is shown, not obeyed; what stands in backticks is code."""
    paths = {"/x": {"get": {"operationId": "x", "tags": ["<i>"], "summary": "<b>& `<b>`", "responses": {}}}}
    page = api_page.page({**DOCUMENT, "paths": paths})
    assert "&lt;b&gt;&amp;" in page
    assert "<code>&lt;b&gt;</code>" in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_a_webhooks_body_is_what_the_document_says() -> None:
    """Whoever generates a receiver from it can read what is sent."""
    post = DOCUMENT["webhooks"]["turn"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/WebhookPayload"}
    body = payload.render(record_from_fold(TurnKey(Tenant("ours"), TurnId("turn-1")), answered("Light scatters.").turn))
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(msgspec.json.decode(body))
    headers = signature.sign("turn-1", 1, body, [b"secret"])
    assert {parameter["name"] for parameter in post["parameters"]} == set(headers)
