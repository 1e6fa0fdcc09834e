"""Schema checks in the real subprocess, also with hostile schemas."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from tailrace.features.structured_output import json_schema
from tailrace.features.structured_output.json_schema import SchemaChecker
from tailrace.proto.errors import Refused, SandboxFailed
from tailrace.proto.ids import Tenant

LONG_S = 60.0
ACME = Tenant("acme")
RIVER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "km": {"type": "integer", "minimum": 1}},
    "required": ["name", "km"],
}


def doubling(levels: int) -> dict[str, Any]:
    """Returns a schema in which each level refers twice to the next: 2 ** `levels` checks."""
    named: dict[str, Any] = {"a0": {"type": "string"}}
    for level in range(1, levels + 1):
        named[f"a{level}"] = {"allOf": [{"$ref": f"#/$defs/a{level - 1}"}] * 2}
    return {"$ref": f"#/$defs/a{levels}", "$defs": named}


# Takes practically for ever to compile.
SLOW_TO_READ = doubling(40) | {"unevaluatedProperties": False}


@pytest.mark.rule("R60")
@pytest.mark.parametrize(
    ("text", "mismatch"),
    [
        ('{"name":"Rhein","km":1230}', None),
        (' {"name":"Rhein","km":1230}\n', None),
        ('{"name":"Rhein"}', '"km" is a required property'),
        ('{"name":"Rhein","km":"x"}', '["km"]: "x" is not of type "integer"'),
        ('{"name":"Rhein","km":0}', '["km"]: 0 is less than the minimum of 1'),
        ("The Rhein is long.", "it is not JSON"),
        ('```json\n{"name":"Rhein","km":1}\n```', "it is not JSON"),
        ('{"name":"Rhein","km":NaN}', "it is not JSON: NaN"),
        ("[" * 100_000, "it is not JSON"),
        ('{"name":"Rhein","km":' + "9" * 5000 + "}", "it is not JSON"),
        ("", "it is not JSON"),
    ],
)
async def test_find_mismatch_says_why_a_text_is_invalid(text: str, mismatch: str | None) -> None:
    """The whole text must be JSON, without surrounding prose."""
    misfit = await SchemaChecker(wait_s=LONG_S).find_mismatch(RIVER, text, ACME)
    assert misfit is None if mismatch is None else misfit is not None and mismatch in misfit


async def test_a_mismatch_message_is_short() -> None:
    """It is stored in the log and sent to the model."""
    misfit = await SchemaChecker(wait_s=LONG_S).find_mismatch(
        {"items": {"type": "string"}}, "[" + ",".join(["1" * 500] * 900) + "]", ACME
    )
    assert misfit is not None
    assert len(misfit) < 1000


async def test_errors_that_repeat_a_long_value_of_the_schema_are_one_message() -> None:
    """The messages of all errors would have 10 GB. The schema of a forced tool call has no limit but that of a body."""
    schema = {"items": {"enum": ["x" * 10_000_000]}}
    misfit = await SchemaChecker(wait_s=LONG_S).find_mismatch(schema, "[" + "0," * 1000 + "0]", ACME)
    assert misfit is not None
    assert misfit.count("is not one of") == 1


async def test_a_mismatch_message_has_three_errors() -> None:
    misfit = await SchemaChecker(wait_s=LONG_S).find_mismatch({"items": {"enum": ["x"]}}, "[1, 2, 3, 4]", ACME)
    assert misfit is not None
    assert misfit.count("is not one of") == 3


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"properties": 1},
        {"pattern": "("},
        {"pattern": "((a{1000}){1000}){1000}"},
        {"$schema": "https://example.com/own"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#/$defs/none"},
        {"$id": "https://example.com/a", "$ref": "b"},
        {"$dynamicRef": "https://example.com/x"},
        SLOW_TO_READ,
    ],
)
async def test_invalid_schemas_are_refused(schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also schemas that take too long to compile."""
    monkeypatch.setattr(json_schema, "VALIDATION_S_MAX", 1.0)
    with pytest.raises(Refused) as refused:
        await SchemaChecker(wait_s=LONG_S).check_schema(schema, ACME)
    assert refused.value.code == "schema_invalid"


async def test_the_error_of_an_invalid_schema_says_where_it_is() -> None:
    with pytest.raises(Refused, match=r'\["properties"\]\["km"\]: 5 is not of types "boolean", "object"'):
        await SchemaChecker(wait_s=LONG_S).check_schema({"properties": {"name": {}, "km": 5}}, ACME)


@pytest.mark.parametrize("name", ["draft-07/schema#", "draft-04/schema#"])
async def test_older_drafts_are_accepted(name: str) -> None:
    """Some client libraries still write them."""
    await SchemaChecker(wait_s=LONG_S).check_schema(
        {"$schema": f"http://json-schema.org/{name}", "type": "object"}, ACME
    )


@pytest.mark.rule("R60")
@pytest.mark.rule("S10")
async def test_references_are_not_fetched() -> None:
    connected = asyncio.Event()
    server = await asyncio.start_server(lambda *_: connected.set(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for schema in ({"$ref": f"http://127.0.0.1:{port}/x"}, {"$schema": f"http://127.0.0.1:{port}/x"}):
            with pytest.raises(Refused):
                await SchemaChecker(wait_s=LONG_S).check_schema(schema, ACME)
    assert not connected.is_set()


@pytest.mark.usefixtures("one_cpu_second")
async def test_an_endless_check_does_not_block_others() -> None:
    """The event loop runs on, other checks finish, and the endless one is killed."""
    checker = SchemaChecker(wait_s=LONG_S)
    slow = asyncio.create_task(checker.find_mismatch(doubling(60), '"x"', ACME))
    assert await checker.find_mismatch(RIVER, '{"name":"Rhein","km":1}', ACME) is None
    assert not slow.done()
    with pytest.raises(SandboxFailed):
        await slow


@pytest.mark.usefixtures("one_cpu_second")
@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a+)+(?=b)b$"], ids=["linear", "backtracking"])
async def test_backtracking_patterns_end_in_time(pattern: str) -> None:
    """An endless one by the limit of CPU time, however busy the machine is."""
    with suppress(SandboxFailed):
        await SchemaChecker(wait_s=LONG_S).find_mismatch({"pattern": pattern}, '"' + "a" * 50_000 + '!"', ACME)
