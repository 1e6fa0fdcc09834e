"""Observes the calls of all backends: metrics and, where traces are on, a span."""

from collections.abc import Iterator
from contextlib import contextmanager

from tailrace.generators.backends import Call
from tailrace.generators.backends.measured import measured
from tailrace.generators.backends.model_event import Put
from tailrace.generators.backends.traced import traced
from tailrace.proto.runtime import tracing

# The values of `gen_ai.provider.name` in OpenTelemetry's conventions for generative AI, by backend. LiteLLM calls
# several providers, so its own name stands for them.
PROVIDERS = {
    "claude": "anthropic",
    "claude_code": "anthropic",
    "bedrock": "aws.bedrock",
    "vertex": "gcp.vertex_ai",
    "litellm": "litellm",
}


@contextmanager
def observed(put: Put, backend: str, call: Call) -> Iterator[Put]:
    """Observes a call of `backend` until the context is left. Yields what takes its events and passes them to `put`."""
    provider, model, max_tokens = PROVIDERS[backend], call.model, call.max_tokens
    # Its long strings use much memory.
    del call
    with measured(put, provider, model) as put_measured:
        if not tracing.is_on():
            yield put_measured
            return
        with traced(put_measured, provider, model, max_tokens) as put_traced:
            yield put_traced
