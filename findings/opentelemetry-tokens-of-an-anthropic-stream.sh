#!/usr/bin/env bash
# OpenLLMetry adds up the output tokens of message_start and message_delta, and a trace has the tokens of a call in two spans.
#
# Guessed:  the output tokens are the last count of the stream, because Anthropic's counts are cumulative; one span has them.
# Version:  opentelemetry-instrumentation-anthropic 0.62.4 (OpenLLMetry), openinference-instrumentation-anthropic 3.1.0,
#           anthropic 2.14.0, opentelemetry-sdk 1.45.2.
# Seen:     output tokens 40 in message_start, 50 in message_delta; input tokens 10, 100 read from the cache, 1000 written to it:
#               anthropic.messages.create (the SDK itself)   output 50, input 1110
#               anthropic.chat (OpenLLMetry)                 output 90, input 1110
#               messages.create (OpenInference)              output 50, input 1110
#           The SDK's span is in each trace. It names the tokens written to the cache gen_ai.usage.cache_write.input_tokens,
#           OpenLLMetry gen_ai.usage.cache_creation.input_tokens, as the semantic conventions do.
# Meets:    dashboards and bills that add up the tokens of all spans: each call is counted twice, and its output tokens too high.
# Tailrace: Sends the model's own counts; docs/PROGRAMS.md and docs/RUNBOOK.md#traces say which spans to count.
# Exits non-zero if this changes, and 77 if a version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' 'opentelemetry-sdk==1.45.2' 'opentelemetry-instrumentation-anthropic==0.62.4' 'openinference-instrumentation-anthropic==3.1.0' <<'PYTHON'
import logging

from anthropic import Anthropic
from messages_api import MESSAGE, MESSAGES, serve, stream_reply
from openinference.instrumentation.anthropic import AnthropicInstrumentor as OpenInference
from opentelemetry import trace
from opentelemetry.instrumentation.anthropic import AnthropicInstrumentor as OpenLLMetry
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

logging.disable(logging.CRITICAL)
FIRST = {"input_tokens": 10, "output_tokens": 40, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 1000}
ANSWER = stream_reply(
    [
        {"type": "message_start", "message": {**MESSAGE, "usage": FIRST}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "One two"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 50}},
        {"type": "message_stop"},
    ]
)
# Names of the attributes: the output tokens, the input tokens, those written to the cache.
SDK = ("gen_ai.usage.output_tokens", "gen_ai.usage.input_tokens", "gen_ai.usage.cache_write.input_tokens")
OPENLLMETRY = (*SDK[:2], "gen_ai.usage.cache_creation.input_tokens")
OPENINFERENCE = ("llm.token_count.completion", "llm.token_count.prompt", "llm.token_count.prompt_details.cache_write")
NAMES = {"anthropic.messages.create": SDK, "anthropic.chat": OPENLLMETRY, "messages.create": OPENINFERENCE}

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
client = Anthropic(base_url=serve(lambda body, headers: ANSWER), api_key="k", max_retries=0)


def tokens_of_a_call(instrumentor):
    """Returns the three counts in each span of a call, by the name of the span."""
    instrumentor.instrument(tracer_provider=provider)
    for _ in client.messages.create(model="m", max_tokens=10, messages=MESSAGES, stream=True):
        pass
    instrumentor.uninstrument()
    found = {span.name: [span.attributes.get(name) for name in NAMES[span.name]] for span in exporter.get_finished_spans()}
    exporter.clear()
    print(found)
    return found


own = {"anthropic.messages.create": [50, 1110, 1000]}
assert tokens_of_a_call(OpenLLMetry()) == {**own, "anthropic.chat": [90, 1110, 1000]}
assert tokens_of_a_call(OpenInference()) == {**own, "messages.create": [50, 1110, 1000]}
PYTHON
