"""Whether a JSON Schema is one, and whether a text fits it. A process of its own says so; this file judges nothing."""

from pathlib import Path
from typing import Any

import msgspec

from tailrace.proto.errors import Refused, SandboxBusy, SandboxFailed
from tailrace.proto.ids import Tenant
from tailrace.proto.runtime.sandbox import Sandbox

PROGRAM = Path(__file__).with_name("json_schema_worker.py")
# What it may compute is in the program, and less: a machine that is busy makes no schema wrong.
JUDGEMENT_S_MAX = 10.0


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong with the schema, or with the text; neither: it fits."""

    invalid: str | None = None
    misfit: str | None = None


class SchemaChecker:
    """Nothing that a schema refers to is fetched, and none keeps it for ever."""

    def __init__(self, *, wait_s: float) -> None:
        """`wait_s`: how long a judgement waits for those of others."""
        self._child = Sandbox(PROGRAM, wait_s=wait_s)

    async def check_schema(self, schema: dict[str, Any], whose: Tenant) -> None:
        """Raises Refused for what is no JSON Schema, or takes too long to be read."""
        try:
            verdict = await self._verdict(schema, b"", whose)
        except SandboxBusy as error:
            raise Refused("server_busy", f"the JSON Schema was not looked at: {error}. Send it again") from error
        except SandboxFailed as error:
            raise Refused("schema_invalid", f"the JSON Schema cannot be used: {error}") from error
        if verdict.invalid is not None:
            raise Refused("schema_invalid", f"that is no JSON Schema: {verdict.invalid}")

    async def find_mismatch(self, schema: dict[str, Any], text: str, whose: Tenant) -> str | None:
        """Why `text` is not JSON that fits `schema`; None when it is. Raises SandboxFailed when nobody can say."""
        # No text at all is no JSON, as a blank is none.
        verdict = await self._verdict(schema, text.encode("utf-8", "replace") or b" ", whose)
        if verdict.invalid is not None:
            raise SandboxFailed(f"that is no JSON Schema: {verdict.invalid}")
        return verdict.misfit

    async def _verdict(self, schema: dict[str, Any], text: bytes, whose: Tenant) -> Verdict:
        asked = msgspec.json.encode(schema)
        said = await self._child.run(b"%d\n%b%b" % (len(asked), asked, text), JUDGEMENT_S_MAX, whose)
        return msgspec.json.decode(said, type=Verdict)
