"""Observes the calls of all backends: metrics and, where traces are on, a span."""

from collections.abc import Iterator
from contextlib import contextmanager

from tailrace.generators.backends import Call
from tailrace.generators.backends.measured import measured
from tailrace.generators.backends.model_event import Put
from tailrace.generators.backends.traced import traced
from tailrace.proto.runtime import tracing


@contextmanager
def observed(put: Put, provider: str, call: Call) -> Iterator[Put]:
    """Observes a call to `provider` until the context is left. Yields what takes its events and passes them to `put`.

    `provider` is a value of `gen_ai.provider.name`.
    """
    model, max_tokens = call.model, call.max_tokens
    # Its long strings use much memory.
    del call
    with measured(put, provider, model) as put_measured:
        if not tracing.is_on():
            yield put_measured
            return
        with traced(put_measured, provider, model, max_tokens) as put_traced:
            yield put_traced
