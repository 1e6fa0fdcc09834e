#!/usr/bin/env bash
# @microsoft/fetch-event-source does not reconnect after a clean end, and repeats a POST after a cut.
#
# Guessed:  it follows EventSource: it reconnects after each end with `Last-Event-ID`. A POST, which is not idempotent, is
#           sent once.
# Version:  @microsoft/fetch-event-source 2.0.1, Node 20 or newer.
# Seen:     requests that the server received within 3 s; each response has an event with id 7 and `retry: 100`:
#               GET, clean end: 1 (no Last-Event-ID)
#               POST, cut:      2 (the second with Last-Event-ID 7)
# Meets:    servers that end a stream at a restart and wait for the client to return: it does not. And servers that start
#           work at each POST: a repeated POST with Last-Event-ID must find the work of the first.
# Tailrace: A POST with `Last-Event-ID` continues its answer instead of starting another one.
# Exits non-zero if this changes, and 77 if the version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node '@microsoft/fetch-event-source@2.0.1' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { createRequire } from "node:module";

// The two names of a browser that the library uses: a document that is visible, and timers.
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
globalThis.window = globalThis;
const { fetchEventSource } = createRequire(import.meta.url)("@microsoft/fetch-event-source");

let requests = [];
const server = createServer((request, response) => {
  requests.push(request.headers["last-event-id"] ?? "no Last-Event-ID");
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write("id: 7\nretry: 100\ndata: x\n\n");
  if (request.method === "GET" || requests.length > 1) response.end();
  else setTimeout(() => response.destroy(), 100);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const url = `http://127.0.0.1:${server.address().port}/`;

async function received(method) {
  requests = [];
  fetchEventSource(url, { method, openWhenHidden: true });
  await new Promise((resolve) => setTimeout(resolve, 3000));
  return requests;
}

const seen = [await received("GET"), await received("POST")];
console.log("GET, clean end:", seen[0].length, `(${seen[0]})`);
console.log("POST, cut:     ", seen[1].length, `(${seen[1].join(", then ")})`);
process.exit(JSON.stringify(seen) === '[["no Last-Event-ID"],["no Last-Event-ID","7"]]' ? 0 : 1);
JAVASCRIPT
