"""A receiver of webhooks: verifies each request, and stores each answer in a table of its own exactly once.

    SECRET=$(tailrace webhook-secret --tenant local) PORT=9999 DATABASE=answers.db python3 webhook_receiver.py

Start Tailrace with TAILRACE_WEBHOOK_KEY and TAILRACE_WEBHOOK_PRIVATE_HOSTS=127.0.0.1, and give a turn the `webhook`
http://127.0.0.1:9999/. The statements are also those of PostgreSQL.
"""

import base64
import hashlib
import hmac
import json
import os
import sqlite3
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

key = base64.b64decode(os.environ["SECRET"].removeprefix("whsec_"))
# Each statement is a transaction of its own.
database = sqlite3.connect(os.environ.get("DATABASE", "answers.db"), isolation_level=None)
database.execute("create table if not exists answers (turn text primary key, session text, outcome text, answer text)")


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
        if is_accepted:
            store(json.loads(body))
        # Only after the commit: a request without an answer comes again.
        self.send_response(204 if is_accepted else 401)
        self.end_headers()


def store(event: dict) -> None:
    turn = event["data"]
    if event["type"] == "budget.reached":
        print(event["type"], f"{turn['percent']} % of {turn['budget']}", flush=True)
        return
    # A turn that failed or was cancelled has a part of its answer, or none: your page shows its outcome.
    row = (turn["turn"], turn["session"], turn["outcome"], turn["text"])
    added = database.execute("insert into answers values (?, ?, ?, ?) on conflict do nothing", row).rowcount
    if added:  # and not for a webhook that comes again
        print(event["type"], turn["turn"], turn["outcome"], flush=True)


HTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9999"))), Receiver).serve_forever()
