"""Whether a JSON Schema is one, and whether a text fits it. A process of its own says so; this file judges nothing.

There are schemas of some hundred bytes that keep a validator busy for years, and a thread cannot be stopped. So each
judgement is made by a process that has a time, no environment and no network, and is killed at the end of it.
"""

import asyncio
import sys
from pathlib import Path
from typing import Any

import msgspec

from proto.errors import Refused, Unjudged

PROGRAM = str(Path(__file__).with_name("judge_process.py"))
JUDGEMENT_S_MAX = 3.0
# Two cores may have other things to do.
AT_ONCE_MAX = 2


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong with the schema, or with the text; neither: it fits."""

    invalid: str | None = None
    misfit: str | None = None


class Judge:
    """At most AT_ONCE_MAX judgements at once; further ones wait. Each takes about 50 ms of CPU."""

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(AT_ONCE_MAX)

    async def require(self, schema: dict[str, Any]) -> None:
        """Raises Refused for what is no JSON Schema, or takes too long to be read."""
        try:
            verdict = await self._verdict(schema, b"")
        except Unjudged as error:
            raise Refused("schema_invalid", f"the JSON Schema cannot be used: {error}") from error
        if verdict.invalid is not None:
            raise Refused("schema_invalid", f"the JSON Schema is none: {verdict.invalid}")

    async def misfit(self, schema: dict[str, Any], text: str) -> str | None:
        """Why `text` is not JSON that fits `schema`; None when it is. Raises Unjudged when nobody can say."""
        # No text at all is no JSON, as a blank is none.
        verdict = await self._verdict(schema, text.encode("utf-8", "replace") or b" ")
        if verdict.invalid is not None:
            raise Unjudged(f"the JSON Schema is none: {verdict.invalid}")
        return verdict.misfit

    async def _verdict(self, schema: dict[str, Any], text: bytes) -> Verdict:
        asked = msgspec.json.encode(schema)
        async with self._room:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-I",
                    PROGRAM,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    env={},
                )
            except OSError as error:
                raise Unjudged(f"no process could be started: {error}") from error
            try:
                async with asyncio.timeout(JUDGEMENT_S_MAX):
                    said, _ = await process.communicate(b"%d\n%b%b" % (len(asked), asked, text))
            except TimeoutError as error:
                raise Unjudged(f"it takes more than {JUDGEMENT_S_MAX:.0f} s to be judged by it") from error
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        try:
            return msgspec.json.decode(said, type=Verdict)
        except msgspec.DecodeError as error:
            raise Unjudged(f"its judge broke with status {process.returncode}") from error
