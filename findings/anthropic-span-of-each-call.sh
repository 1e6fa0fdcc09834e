#!/usr/bin/env bash
# anthropic (Python) makes a span for each call and sends `traceparent` with it, as soon as the program uses OpenTelemetry.
#
# Guessed:  an SDK makes no spans unless an instrumentation package is installed and started.
# Version:  anthropic 2.14.0, opentelemetry-sdk 1.45.2.
# Seen:     one call, before and after set_tracer_provider():
#               before: no span, no traceparent
#               after:  span anthropic.messages.create, traceparent sent
#           The span has GenAI attributes, such as gen_ai.usage.input_tokens.
# Meets:    programs with spans of their own or with an instrumentation of the SDK: calls and tokens count twice. And trace ids
#           leave the company with each call.
# Tailrace: Calls the model with the SDK's `post`, which makes no span and sends no `traceparent`; the span of a call is
#           Tailrace's own.
# Exits non-zero if this changes, and 77 if a version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' 'opentelemetry-sdk==1.45.2' <<'PYTHON'
import anthropic
import messages_api
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

received = {}


def answer(_, headers):
    received.clear()
    received.update(headers)
    return messages_api.json_reply(200, messages_api.MESSAGE)


client = anthropic.Anthropic(api_key="k", base_url=messages_api.serve(answer))
exporter = InMemorySpanExporter()


def call():
    client.messages.create(model="m", max_tokens=9, messages=messages_api.MESSAGES)
    names = [f"span {span.name}" for span in exporter.get_finished_spans()] or ["no span"]
    return ", ".join([*names, "traceparent sent" if "traceparent" in received else "no traceparent"])


seen = [call()]
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
seen.append(call())
print("before:", seen[0])
print("after: ", seen[1])
assert seen == ["no span, no traceparent", "span anthropic.messages.create, traceparent sent"], seen
PYTHON
