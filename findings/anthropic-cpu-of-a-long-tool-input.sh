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
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic

START = {"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
         "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}}
BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "toolu_1", "name": "w", "input": {}}}
ENDS = [{"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"}]


def frames(deltas):
    parts = ['{"lines": [', *(f'"{n:035d}", ' for n in range(deltas)), '""]}']
    middle = [{"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": p}} for p in parts]
    return "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in [START, BLOCK, *middle, *ENDS]).encode()


class Api(BaseHTTPRequestHandler):
    def do_POST(self):
        body = BODIES[json.loads(self.rfile.read(int(self.headers["content-length"])))["model"]]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


BODIES = {str(count): frames(count) for count in (1000, 10000)}
server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.Anthropic(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)


def helper_s(model):
    begin = time.thread_time()
    with client.messages.stream(model=model, max_tokens=9, messages=[{"role": "user", "content": "hi"}]) as stream:
        stream.until_done()
    return time.thread_time() - begin


def events_s(model):
    begin = time.thread_time()
    for _ in client.messages.create(model=model, max_tokens=9, messages=[{"role": "user", "content": "hi"}], stream=True):
        pass
    return time.thread_time() - begin


helper_s("1000")  # the first call imports
seen = {model: (helper_s(model), events_s(model)) for model in BODIES}
for model, (helper, events) in seen.items():
    print(f"{model:>5} deltas: {helper:.2f} s with messages.stream(), {events:.2f} s with messages.create(stream=True)")
# Ten times the deltas: 10 if the cost is linear, up to 100 if it is quadratic.
helper, events = (seen["10000"][n] / seen["1000"][n] for n in (0, 1))
assert helper > 17 and events < 15, seen
PYTHON
