"""The example requests of the page `/docs`, run by curl as they stand there."""

import asyncio
import os
from collections import deque
from html import unescape
from pathlib import Path
from typing import Any

import msgspec
from jsonschema_rs import Draft202012Validator

from tailrace.deploy.cli.keys import create
from tailrace.features.api_reference.gateway import document, page
from tailrace.features.api_reference.reference_page import ADDRESS
from tailrace.gateway.http.scope import SCOPES
from tailrace.proto.ids import Tenant
from tests.harness.own_system import OwnSystem
from tests.harness.persistence_in_loop import Persistence
from tests.integration.conftest import NewGateway

DOCUMENT: dict[str, Any] = msgspec.json.decode(document())
# The objects of the examples do not exist, and a question is refused while another one of its session is answered.
ACCEPTED = {200, 201, 202, 204, 404, 409}
# curl makes no WebSocket, there is no cookie of a login, and the tenant has another name.
REFUSED = {("/v1/responses", "get"): 426, ("/v1/login/refresh", "post"): 401, ("/v1/tenant", "delete"): 400}
AT_ONCE = 6


def commands() -> dict[tuple[str, str], str]:
    """Returns the command that the page shows for each operation."""
    shown = page().decode()
    found = {}
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            inside = shown.partition(f'<details id="{operation["operationId"]}">')[2]
            found[path, method] = unescape(inside.partition("<pre>")[2].partition("</pre>")[0])
    return found


async def test_each_example_request_is_accepted_and_its_answer_fits_the_document(
    own: OwnSystem, new_gateway: NewGateway, tmp_path: Path
) -> None:
    """An object of an example that does not exist is not found. A JSON answer has the schema of the operation."""
    (tmp_path / "report.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
    waiting, problems, kinds = deque(commands().items()), list[Any](), set[int]()
    async with Persistence(own.server.url, tmp_path / "tailrace.db"), own.running_generator():
        key, _ = await create(own.server.url, Tenant("acme-operators"), "docs", SCOPES)
        gateway = await new_gateway(own.server.url)
        given = os.environ | {"TAILRACE_KEY": key.secret, "NO_PROXY": "*"}

        async def run_commands() -> None:
            while waiting:
                (path, method), command = waiting.popleft()
                command = command.replace(ADDRESS, gateway.url).replace("curl ", "curl -m 40 -w '\\n%{http_code}' ", 1)
                running = await asyncio.create_subprocess_shell(command, env=given, cwd=tmp_path, stdout=-1, stderr=-1)
                printed, _ = await running.communicate()
                body, _, status = printed.decode().rpartition("\n")
                kinds.add(int(status))
                problems.extend(find_problems(path, method, int(status), body))

        await asyncio.gather(*(run_commands() for _ in range(AT_ONCE)))
    assert problems == [], "\n".join(map(str, problems))
    assert {200, 202, 404} <= kinds


def find_problems(path: str, method: str, status: int, body: str) -> list[tuple[str, str, int, str]]:
    if status not in ACCEPTED and status != REFUSED.get((path, method)):
        return [(method, path, status, body[:300])]
    content = DOCUMENT["paths"][path][method]["responses"].get(str(status), {}).get("content", {})
    if "application/json" not in content or not body.startswith(("{", "[")):
        return []
    schema = content["application/json"]["schema"] | {"components": DOCUMENT["components"]}
    errors = Draft202012Validator(schema).iter_errors(msgspec.json.decode(body))
    return [(method, path, status, str(error)[:300]) for error in errors]
