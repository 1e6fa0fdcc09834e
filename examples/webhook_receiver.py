"""A receiver of webhooks: verifies each request, and prints each turn and each notice of a budget once.

    SECRET=$(tailrace webhook-secret --tenant local) PORT=9999 python3 webhook_receiver.py

Start Tailrace with TAILRACE_WEBHOOK_KEY and TAILRACE_WEBHOOK_PRIVATE_HOSTS=127.0.0.1, and give a turn the `webhook`
http://127.0.0.1:9999/.
"""

import base64
import hashlib
import hmac
import json
import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

key = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
seen: set[str] = set()  # yours: in a database


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        name, timestamp = self.headers["webhook-id"], self.headers["webhook-timestamp"]
        digest = hmac.new(key, f"{name}.{timestamp}.".encode() + body, hashlib.sha256).digest()
        expected = "v1," + base64.b64encode(digest).decode()
        # There are two signatures while a key is changed.
        is_genuine = any(hmac.compare_digest(expected, one) for one in self.headers["webhook-signature"].split())
        # An attacker may send a copy later.
        is_accepted = is_genuine and abs(time.time() - int(timestamp)) < 300
        self.send_response(204 if is_accepted else 401)
        self.end_headers()
        if is_accepted and name not in seen:  # a webhook may arrive twice
            seen.add(name)
            event = json.loads(body)
            data = event["data"]
            said = f"{data['percent']} % of {data['budget']}" if event["type"] == "budget.reached" else data["outcome"]
            print(event["type"], name, said, flush=True)


HTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9999"))), Receiver).serve_forever()
