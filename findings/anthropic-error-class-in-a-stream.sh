#!/usr/bin/env bash
# anthropic (Python) raises a typed error for a refused request, and only the general class for the same error in a stream.
#
# Guessed:  an `error` event with `details.error_code` raises the class that the same body raises with its HTTP status.
# Version:  anthropic 2.14.0.
# Seen:     the class is chosen by (HTTP status, error code), and the status of a stream is always 200:
#               before the stream: ImageDimensionsTooLargeError 400 image_dimensions_too_large
#               in the stream:     APIStatusError 200 image_dimensions_too_large
# Meets:    programs that catch a typed error around a stream. They must look at `error_code`.
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import anthropic

DETAILS = {"error_code": "image_dimensions_too_large"}
BODY = {"type": "error", "error": {"type": "invalid_request_error", "message": "too large", "details": DETAILS}}
START = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
         "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1}}


class Api(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] == "refused":
            self.reply(400, "application/json", json.dumps(BODY))
        else:
            events = ({"type": "message_start", "message": START}, BODY)
            self.reply(200, "text/event-stream", "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events))

    def reply(self, status, kind, text):
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Api)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = anthropic.Anthropic(api_key="k", base_url=f"http://127.0.0.1:{server.server_port}", max_retries=0)
seen = []
for model in ("refused", "broken"):
    try:
        for _ in client.messages.create(model=model, max_tokens=1, messages=[{"role": "user", "content": "hi"}], stream=True):
            pass
    except anthropic.APIStatusError as error:
        seen.append(f"{type(error).__name__} {error.status_code} {error.error_code}")
print("before the stream:", seen[0])
print("in the stream:    ", seen[1])
assert seen == [
    "ImageDimensionsTooLargeError 400 image_dimensions_too_large",
    "APIStatusError 200 image_dimensions_too_large",
], seen
PYTHON
