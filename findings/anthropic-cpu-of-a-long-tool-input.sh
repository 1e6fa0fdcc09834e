#!/usr/bin/env bash
# anthropic (Python) parses the whole input of a tool again at each delta: the CPU grows with the square of its length.
#
# Guessed:  `messages.stream()` costs the same CPU for each delta, however long the block is.
# Version:  anthropic 2.14.0.
# Seen:     CPU of a stream with one tool call, whose input comes in deltas of 40 characters:
#                1000 deltas: 0.14 s with messages.stream(), 0.03 s with messages.create(stream=True)
#               10000 deltas: 5.38 s with messages.stream(), 0.32 s with messages.create(stream=True)
# Meets:    agents that write files or long documents by a tool: the event loop stands still for seconds, for all users of the
#           process. Use create(stream=True), and parse the input once at its end.
# Tailrace: Reads the stream as bytes, and parses no input (ADR 11).
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import time

import anthropic
import messages_api

BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "toolu_1", "name": "w", "input": {}}}
ENDS = [{"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"}]


def reply_of(deltas):
    parts = ['{"lines": [', *(f'"{n:035d}", ' for n in range(deltas)), '""]}']
    middle = [{"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": p}} for p in parts]
    return messages_api.stream_reply([messages_api.START, BLOCK, *middle, *ENDS])


REPLIES = {str(count): reply_of(count) for count in (1000, 10000)}
client = anthropic.Anthropic(api_key="k", base_url=messages_api.serve(lambda request, _: REPLIES[request["model"]]), max_retries=0)


def helper_s(model):
    begin = time.thread_time()
    with client.messages.stream(model=model, max_tokens=9, messages=messages_api.MESSAGES) as stream:
        stream.until_done()
    return time.thread_time() - begin


def events_s(model):
    begin = time.thread_time()
    for _ in client.messages.create(model=model, max_tokens=9, messages=messages_api.MESSAGES, stream=True):
        pass
    return time.thread_time() - begin


helper_s("1000")  # the first call imports
seen = {model: (helper_s(model), events_s(model)) for model in REPLIES}
for model, (helper, events) in seen.items():
    print(f"{model:>5} deltas: {helper:.2f} s with messages.stream(), {events:.2f} s with messages.create(stream=True)")
# Ten times the deltas: 10 if the cost is linear, up to 100 if it is quadratic.
helper, events = (seen["10000"][n] / seen["1000"][n] for n in (0, 1))
assert helper > 17 and events < 15, seen
PYTHON
