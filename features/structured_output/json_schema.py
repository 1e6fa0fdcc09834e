"""Validates JSON Schemas, and texts against them, in a sandboxed subprocess (json_schema_worker.py)."""

from pathlib import Path
from typing import Any

import msgspec

from tailrace.features.common.sandbox import Sandbox
from tailrace.proto.errors import Refused, SandboxBusy, SandboxFailed
from tailrace.proto.ids import Tenant

PROGRAM = Path(__file__).with_name("json_schema_worker.py")
# Longer than the worker's CPU limit: a busy machine must not make a schema invalid.
VALIDATION_S_MAX = 10.0


class Verdict(msgspec.Struct, frozen=True):
    """The worker's reply: the error of the schema or of the text. Neither: the text is valid."""

    invalid: str | None = None
    misfit: str | None = None


class SchemaChecker:
    """Runs validations in subprocesses. References of a schema are not fetched; the time is bounded."""

    def __init__(self, *, wait_s: float) -> None:
        """`wait_s`: how long a validation waits for a free subprocess."""
        self._sandbox = Sandbox(PROGRAM, wait_s=wait_s)

    async def check_schema(self, schema: dict[str, Any], tenant: Tenant) -> None:
        """Raises Refused if `schema` is not a valid JSON Schema, takes too long, or no subprocess is free."""
        try:
            verdict = await self._verdict(schema, b"", tenant)
        except SandboxBusy as error:
            raise Refused("server_busy", f"the JSON Schema was not checked: {error}. Send the request again") from error
        except SandboxFailed as error:
            raise Refused("schema_invalid", f"the JSON Schema cannot be used: {error}. Simplify it") from error
        if verdict.invalid is not None:
            raise Refused("schema_invalid", f"the JSON Schema is invalid: {verdict.invalid}")

    async def find_mismatch(self, schema: dict[str, Any], text: str, tenant: Tenant) -> str | None:
        """Returns why `text` is not JSON that is valid by `schema`, or None if it is. Raises SandboxFailed."""
        # An empty text is sent as a blank, because the worker takes "no text" as "check the schema only".
        verdict = await self._verdict(schema, text.encode("utf-8", "replace") or b" ", tenant)
        if verdict.invalid is not None:
            raise SandboxFailed(f"the JSON Schema is invalid: {verdict.invalid}")
        return verdict.misfit

    async def _verdict(self, schema: dict[str, Any], text: bytes, tenant: Tenant) -> Verdict:
        encoded = msgspec.json.encode(schema)
        reply = await self._sandbox.run(b"%d\n%b%b" % (len(encoded), encoded, text), VALIDATION_S_MAX, tenant)
        return msgspec.json.decode(reply, type=Verdict)
