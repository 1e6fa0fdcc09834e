"""Whether a text fits a schema: the judge is the real process, and the schemas are also those of nobody's friends."""

import asyncio
from typing import Any

import pytest

from tailrace.proto.errors import Refused, SandboxFailed
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime import json_schema
from tailrace.proto.runtime.json_schema import SchemaChecker
from tailrace.proto.runtime.sandbox import PROCESSES_MAX

LONG_S = 60.0
ACME, BETA = Tenant("acme"), Tenant("beta")
RIVER = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "km": {"type": "integer", "minimum": 1}},
    "required": ["name", "km"],
}


def doubling(levels: int) -> dict[str, Any]:
    """Each level asks twice for the one below: some hundred bytes, and 2 ** `levels` questions."""
    named: dict[str, Any] = {"a0": {"type": "string"}}
    for level in range(1, levels + 1):
        named[f"a{level}"] = {"allOf": [{"$ref": f"#/$defs/a{level - 1}"}] * 2}
    return {"$ref": f"#/$defs/a{levels}", "$defs": named}


# What already takes for ever to be read.
SLOW_TO_READ = doubling(40) | {"unevaluatedProperties": False}


@pytest.mark.rule("R60")
@pytest.mark.parametrize(
    ("text", "said"),
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
async def test_a_text_fits_or_is_told_why_not(text: str, said: str | None) -> None:
    """The whole text is the JSON: what is around it would be in everybody's way."""
    misfit = await SchemaChecker(wait_s=LONG_S).find_mismatch(RIVER, text, ACME)
    assert misfit is None if said is None else misfit is not None and said in misfit


async def test_what_is_wrong_is_told_in_a_few_words() -> None:
    """It goes into the log and to the model, and an answer may be as long as it likes."""
    misfit = await SchemaChecker(wait_s=LONG_S).find_mismatch(
        {"items": {"type": "string"}}, "[" + ",".join(["1" * 500] * 900) + "]", ACME
    )
    assert misfit is not None
    assert len(misfit) < 1000


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
async def test_what_is_no_schema_is_refused(schema: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is, and cannot be read in time."""
    monkeypatch.setattr(json_schema, "JUDGEMENT_S_MAX", 1.0)
    with pytest.raises(Refused) as refused:
        await SchemaChecker(wait_s=LONG_S).check_schema(schema, ACME)
    assert refused.value.code == "schema_invalid"


@pytest.mark.parametrize("name", ["draft-07/schema#", "draft-04/schema#"])
async def test_older_drafts_are_schemas(name: str) -> None:
    """What several clients' libraries write by themselves."""
    await SchemaChecker(wait_s=LONG_S).check_schema(
        {"$schema": f"http://json-schema.org/{name}", "type": "object"}, ACME
    )


@pytest.mark.rule("R60")
@pytest.mark.rule("S10")
async def test_nothing_that_a_schema_refers_to_is_fetched() -> None:
    """Somebody who listens at its address hears nothing."""
    heard = asyncio.Event()
    server = await asyncio.start_server(lambda *_: heard.set(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        for schema in ({"$ref": f"http://127.0.0.1:{port}/x"}, {"$schema": f"http://127.0.0.1:{port}/x"}):
            with pytest.raises(Refused):
                await SchemaChecker(wait_s=LONG_S).check_schema(schema, ACME)
    assert not heard.is_set()


@pytest.mark.usefixtures("one_cpu_second")
async def test_a_judgement_without_end_stops_nobody() -> None:
    """The loop goes on, others are judged meanwhile, and its process is killed."""
    judging = SchemaChecker(wait_s=LONG_S)
    slow = asyncio.create_task(judging.find_mismatch(doubling(60), '"x"', ACME))
    assert await judging.find_mismatch(RIVER, '{"name":"Rhein","km":1}', ACME) is None
    assert not slow.done()
    with pytest.raises(SandboxFailed):
        await slow


@pytest.mark.usefixtures("one_cpu_second")
async def test_who_waits_for_those_without_end_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for a few at once, and each leaves it in time."""
    monkeypatch.setattr(json_schema, "JUDGEMENT_S_MAX", 2.0)
    judging = SchemaChecker(wait_s=LONG_S)
    slow = [asyncio.create_task(judging.find_mismatch(doubling(60), '"x"', ACME)) for _ in range(PROCESSES_MAX)]
    assert await judging.find_mismatch(RIVER, '{"name":"Rhein","km":1}', ACME) is None
    for one in slow:
        with pytest.raises(SandboxFailed):
            await one


async def test_who_sends_many_without_end_keeps_no_other_tenant_waiting() -> None:
    """One tenant's wait for one another, and leave room."""
    judging = SchemaChecker(wait_s=LONG_S)
    slow = [asyncio.create_task(judging.find_mismatch(doubling(60), '"x"', ACME)) for _ in range(2 * PROCESSES_MAX)]
    # They stand before it.
    await asyncio.sleep(0)
    assert await judging.find_mismatch(RIVER, '{"name":"Rhein","km":1}', BETA) is None
    assert not any(one.done() for one in slow)
    for one in slow:
        one.cancel()
    await asyncio.wait(slow)


async def test_a_judgement_that_nobody_waits_for_is_over() -> None:
    """Its process goes with whoever asked, and its room is another's."""
    judging = SchemaChecker(wait_s=LONG_S)
    for _ in range(PROCESSES_MAX + 1):
        asking = asyncio.create_task(judging.find_mismatch(doubling(60), '"x"', ACME))
        await asyncio.wait({asking}, timeout=0.2)
        asking.cancel()
        await asyncio.wait({asking})
    assert await judging.find_mismatch(RIVER, '{"name":"Rhein","km":1}', ACME) is None


@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)+$", "^(a+)+(?=b)b$", "^(?=(a+))\\1+b$"])
async def test_a_pattern_that_is_tried_in_many_ways_ends(pattern: str) -> None:
    """With an answer or without one."""
    async with asyncio.timeout(10):
        try:
            await SchemaChecker(wait_s=LONG_S).find_mismatch({"pattern": pattern}, '"' + "a" * 50_000 + '!"', ACME)
        except SandboxFailed:
            return
