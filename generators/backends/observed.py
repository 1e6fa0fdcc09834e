"""ObservedBackend: the base of backends that observe the calls of another one, and OpenTelemetry's provider names."""

from collections.abc import AsyncGenerator

from tailrace.generators.backends import Backend, Call
from tailrace.generators.backends.model_event import ModelEvent

# The values of `gen_ai.provider.name` in OpenTelemetry's conventions for generative AI, by backend. LiteLLM calls
# several providers, so its own name stands for them.
PROVIDERS = {
    "claude": "anthropic",
    "claude_code": "anthropic",
    "bedrock": "aws.bedrock",
    "vertex": "gcp.vertex_ai",
    "litellm": "litellm",
}


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
