#!/usr/bin/env bash
# anthropic (Python) 2 sends the API key as `Authorization: Bearer`, without `x-api-key`, and a new `anthropic-version`.
#
# Guessed:  `x-api-key` and `anthropic-version: 2023-06-01`, as older versions send.
# Version:  anthropic 2.14.0.
# Seen:     headers of a request of `Anthropic(api_key="k")`:
#               authorization:     Bearer k
#               x-api-key:         None
#               anthropic-version: 2026-10-21
# Meets:    proxies and gateways that look for the key in `x-api-key`: after the client's upgrade they answer 401. Accept both.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic

RESPONSE = json.dumps({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "hi"}],
                       "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}).encode()
received = {}


class Api(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        received.clear()
        received.update({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(RESPONSE)))
        self.end_headers()
        self.wfile.write(RESPONSE)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.Anthropic(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}")
client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "hi"}])
seen = {name: received.get(name) for name in ("authorization", "x-api-key", "anthropic-version")}
for name, value in seen.items():
    print(f"{name}:".ljust(18), value)
assert list(seen.values()) == ["Bearer k", None, "2026-10-21"], seen
PYTHON
