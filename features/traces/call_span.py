"""One span for each call to a model, by OpenTelemetry's conventions for generative AI.

Neither prompts nor answers are recorded.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.trace import Span, SpanKind

from tailrace.generators.backends import Call
from tailrace.generators.backends.measured import error_type_of
from tailrace.generators.backends.model_event import ModelEvent, Put, Wait
from tailrace.proto import events
from tailrace.proto.runtime import tracing
from tailrace.proto.usage_meter import UsageMeter


@contextmanager
def call_span(put: Put, provider: str, call: Call) -> Iterator[Put]:
    """Observes a call in a span, while traces are on. See measured.ObserveCall."""
    model, max_tokens = call.model, call.max_tokens
    # Its long strings use much memory.
    del call
    if not tracing.is_on():
        yield put
        return
    span = tracing.start(f"chat {model}", kind=SpanKind.CLIENT)
    span.set_attributes(
        {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": model,
            "gen_ai.request.max_tokens": max_tokens,
            "gen_ai.request.stream": True,
        }
    )
    begun_at, has_token, meter = time.monotonic(), False, UsageMeter()

    def put_traced(event: ModelEvent) -> Wait | None:
        nonlocal has_token
        if not has_token and isinstance(event.event, events.BlockDelta):
            has_token = True
            span.set_attribute("gen_ai.response.time_to_first_chunk", time.monotonic() - begun_at)
        meter.add(event.event, event.left_out)
        describe(span, event, meter)
        return put(event)

    try:
        yield put_traced
    except BaseException as error:
        if error_type := error_type_of(error):
            tracing.fail(span, error_type)
        raise
    finally:
        span.end()


def describe(span: Span, event: ModelEvent, meter: UsageMeter) -> None:
    """Sets the attributes that an event holds: the answer's id and model, its tokens, and why it stopped.

    A backend that executes tools makes several calls for one answer. `meter` has counted all of them.
    """
    match event.event:
        case events.MessageStart(message):
            if not event.is_hidden:
                span.set_attributes({"gen_ai.response.id": message.id, "gen_ai.response.model": message.model})
            calls = meter.calls
            cached = sum(call.cache_read_input_tokens for call in calls)
            # The conventions count cached tokens as input; Anthropic's `input_tokens` does not.
            prompts = sum(call.input_tokens + call.cache_creation_input_tokens for call in calls) + cached
            span.set_attributes({"gen_ai.usage.input_tokens": prompts, "gen_ai.usage.cache_read.input_tokens": cached})
        case events.MessageDelta(stop, usage):
            if stop.stop_reason is not None:
                span.set_attribute("gen_ai.response.finish_reasons", [stop.stop_reason])
            if usage.output_tokens is not None:
                span.set_attribute("gen_ai.usage.output_tokens", sum(call.output_tokens for call in meter.calls))
        case _:
            pass
