"""Schemathesis with the OpenAPI document: no request is answered with 5xx, and every refusal has an error.

The number of cases is limited here; `make fuzz` runs more.
"""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tailrace.proto.ids import Tenant
from tests.harness import processes
from tests.harness.processes import Process
from tests.harness.refusals import problem_of
from tests.harness.system import System
from tests.integration.conftest import KEY, api_keys

DOCUMENT = Path(__file__).parents[2] / "gateway/openapi/openapi.json"
CASES = int(os.environ.get("SCHEMATHESIS_CASES", "5"))
SCHEMA = schemathesis.openapi.from_path(DOCUMENT)
OPERATIONS: dict[str, Any] = {one.ok().label: one.ok() for one in SCHEMA.get_all_operations()}  # type: ignore[union-attr]
# Any text fits their only parameter, and they need no credential.
ALWAYS_VALID = {"GET /page/{file}", "GET /turns/{turn}"}
# An operation without parameters and body has no invalid requests.
ASKED = [
    pytest.param(label, mode, id=f"{label} {mode.value}")
    for label, operation in OPERATIONS.items()
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE
    or (label not in ALWAYS_VALID and [*operation.iter_parameters(), *operation.body])
]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def fuzzed_gateway(system: System, generator: Process, persistence: Process) -> AsyncIterator[str]:
    """A gateway process: Schemathesis blocks its thread. Answers are short."""
    del generator, persistence
    keys = api_keys(Tenant("schemathesis"))
    given = {"TAILRACE_API_KEYS": keys, "TAILRACE_MAX_TOKENS": 2, "TAILRACE_HEARTBEAT_S": 1}
    async with processes.gateway(system.folder, system.nats_url, **given) as process:
        yield process.url


@pytest.mark.parametrize(("label", "mode"), ASKED)
def test_no_request_is_a_server_error(fuzzed_gateway: str, label: str, mode: GenerationMode) -> None:
    """With bodies that fit the document and bodies that do not."""
    operation = OPERATIONS[label]

    @seed(7)
    @settings(
        max_examples=CASES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:
        response = case.call(base_url=fuzzed_gateway, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            problem_of(response.content)

    ask()
