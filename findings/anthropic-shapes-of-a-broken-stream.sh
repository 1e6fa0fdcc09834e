#!/usr/bin/env bash
# anthropic (Python) reports a broken stream in four ways, one of which is silence.
#
# Guessed:  iterating a stream ends normally after `message_stop`, and raises a subclass of anthropic.APIError otherwise.
# Version:  anthropic 2.14.0.
# Seen:     what a stream raises that breaks off after its first events:
#               error event: APIStatusError 200
#               cut:         httpx2.RemoteProtocolError
#               stall:       httpx2.ReadTimeout
#               clean end:   nothing
#           Errors before the first event are wrapped in APIConnectionError; those of httpx2 in the stream are not.
# Meets:    programs that catch anthropic.APIError around a stream, and store the message behind it. They must catch
#           httpx2.HTTPError as well, and must see `message_stop`.
# Tailrace: Catches the errors of both libraries, and requires `message_stop` (ADR 11).
# Exits non-zero if this changes, and 77 if the version cannot be installed.
. "$(dirname "$0")/setup.sh"
run_python 'anthropic==2.14.0' <<'PYTHON'
import time

import anthropic
import messages_api

BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "half an"}}
ERROR = {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}


class Api(messages_api.Handler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        shape = self.read()["model"]
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        self.write(messages_api.START)
        self.write(BLOCK)
        if shape == "error event":
            self.write(ERROR)
        if shape == "stall":
            time.sleep(3)
        if shape != "cut":
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def write(self, event):
        data = messages_api.frame(event)
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


client = anthropic.Anthropic(api_key="k", base_url=messages_api.serve_with(Api), max_retries=0, timeout=1)
seen = {}
for shape in ("error event", "cut", "stall", "clean end"):
    try:
        with client.messages.stream(model=shape, max_tokens=9, messages=messages_api.MESSAGES) as stream:
            stream.until_done()
        seen[shape] = "nothing"
    except anthropic.APIStatusError as error:
        seen[shape] = f"{type(error).__name__} {error.status_code}"
    except Exception as error:
        seen[shape] = f"{type(error).__module__}.{type(error).__name__}"
    print(f"{shape}:".ljust(12), seen[shape])
assert list(seen.values()) == ["APIStatusError 200", "httpx2.RemoteProtocolError", "httpx2.ReadTimeout", "nothing"], seen
PYTHON
