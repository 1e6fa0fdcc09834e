"""Schemathesis with the OpenAPI document: no request is answered with 5xx, and every refusal has an error.

The number of cases is limited here; `make fuzz` runs more.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, seed, settings

from tailrace.proto.ids import Tenant
from tests.harness import processes
from tests.harness.processes import Process
from tests.harness.refusals import problem_of
from tests.harness.system import System
from tests.integration.conftest import KEY, api_keys

DOCUMENT = Path(__file__).parents[2] / "features/api_reference/openapi.json"
CASES = int(os.environ.get("SCHEMATHESIS_CASES", "3"))
# Any text fits their only parameter, and they need no credential.
ALWAYS_VALID = {"GET /page/{file}", "GET /turns/{turn}", "GET /guides/{guide}"}
PATHS: dict[str, dict[str, dict[str, Any]]] = msgspec.json.decode(DOCUMENT.read_bytes())["paths"]
# An operation without parameters, credential and body has no invalid requests.
OPERATIONS = [
    pytest.param(f"{method.upper()} {path}", mode, id=f"{method.upper()} {path} {mode}")
    for path, operations in PATHS.items()
    for method, operation in operations.items()
    for mode in ("positive", "negative")
    if mode == "positive"
    or (
        f"{method.upper()} {path}" not in ALWAYS_VALID
        and any(operation.get(name) for name in ("parameters", "security", "requestBody"))
    )
]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fuzzed_gateway(system: System, generator: Process, persistence: Process) -> AsyncIterator[str]:
    """A gateway process: Schemathesis blocks its thread. Answers are short."""
    del generator, persistence
    keys = api_keys(Tenant("schemathesis"))
    given = {"TAILRACE_API_KEYS": keys, "TAILRACE_MAX_TOKENS": 2, "TAILRACE_HEARTBEAT_S": 1}
    async with processes.gateway(system.folder, system.nats_url, **given) as process:
        yield process.url


@pytest.fixture(scope="module")
def operations() -> dict[str, Any]:
    """The operations of the document, by method and path."""
    # Not at the top: every worker would wait three seconds for Schemathesis.
    import schemathesis

    document = msgspec.json.decode(DOCUMENT.read_bytes())
    for operation in (one for methods in document["paths"].values() for one in methods.values()):
        for response in operation["responses"].values():
            if stream := response.get("content", {}).get("text/event-stream"):
                # Generators of clients take the schema of a stream for that of an event's data, and Schemathesis for
                # that of the event, as OpenAPI 3.2's `itemSchema`.
                data = {"type": "string", "contentMediaType": "application/json", "contentSchema": stream["schema"]}
                stream["schema"] = {"type": "object", "properties": {"data": data}}
    found = schemathesis.openapi.from_dict(document).get_all_operations()
    return {one.ok().label: one.ok() for one in found}  # type: ignore[union-attr]


def test_every_operation_is_asked(operations: dict[str, Any]) -> None:
    assert {label for one in OPERATIONS for label in one.values[:1]} == set(operations)


@pytest.mark.parametrize(("label", "mode"), OPERATIONS)
def test_no_request_is_a_server_error(fuzzed_gateway: str, operations: dict[str, Any], label: str, mode: str) -> None:
    """With bodies that fit the document and bodies that do not."""
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode
    from schemathesis.specs.openapi import checks

    expected = [
        not_a_server_error,
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]

    @seed(7)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operations[label].as_strategy(generation_mode=GenerationMode(mode)))
    def ask(case: Any) -> None:
        response = case.call(base_url=fuzzed_gateway, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
        case.validate_response(response, checks=expected)
        if response.status_code >= 400:
            problem_of(response.content)

    ask()
