"""ObservedBackend: the base of backends that observe the calls of another one, and OpenTelemetry's provider names."""

import asyncio
from collections.abc import AsyncGenerator

from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.model_event import ModelEvent
from tailrace.proto.errors import BackendError

# The values of `gen_ai.provider.name` in OpenTelemetry's conventions for generative AI, by backend. LiteLLM calls
# several providers, so its own name stands for them.
PROVIDERS = {
    "claude": "anthropic",
    "claude_code": "anthropic",
    "bedrock": "aws.bedrock",
    "vertex": "gcp.vertex_ai",
    "litellm": "litellm",
}

CANCELLED, OTHER = "cancelled", "_OTHER"


def error_type_of(error: BaseException) -> str:
    """Returns the value of OpenTelemetry's `error.type` for what ended a call; empty if it did not fail.

    The conventions ("Recording errors") count every call that raises as failed; `_OTHER` is their value for errors
    without one. A call that its sink closes, because it has enough of the answer (GeneratorExit), did not fail.
    CANCELLED is a call that this process stopped before its answer was complete: at the turn's deadline, because a
    client cancelled the turn or another call was first, or in a drain.
    """
    match error:
        case BackendError():
            return error.code
        case GeneratorExit():
            return ""
        case asyncio.CancelledError():
            return CANCELLED
        case _:
            return OTHER


class ObservedBackend:
    """A backend that passes everything on to `backend`, whose name in the settings is `name`."""

    def __init__(self, name: str, backend: Backend) -> None:
        self._provider = PROVIDERS[name]
        self._backend = backend

    def model_id(self, model: str) -> str:
        return self._backend.model_id(model)

    def answer(self, call: Call) -> AsyncGenerator[ModelEvent, None]:
        """Returns the backend's answer, observed. Only the backend keeps `call`: its long strings use much memory."""
        return self._observe(call.model, call.max_tokens, self._backend.answer(call))

    def _observe(
        self, model: str, max_tokens: int, answer: AsyncGenerator[ModelEvent, None]
    ) -> AsyncGenerator[ModelEvent, None]:
        raise NotImplementedError

    async def close(self) -> None:
        await self._backend.close()
