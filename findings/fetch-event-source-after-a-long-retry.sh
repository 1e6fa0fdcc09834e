#!/usr/bin/env bash
# @microsoft/fetch-event-source reconnects at once, again and again, when `retry:` is longer than 24.8 days.
#
# Guessed:  `retry: 2592000000` (30 days) means that the client does not return while the page is open.
# Version:  @microsoft/fetch-event-source 2.0.1, Node 20 or newer.
# Seen:     requests within 3 s; each stream has one event with the `retry:`, and is then cut:
#               retry: 2147483647 -> 1
#               retry: 2592000000 -> more than 10
#           It passes the number to setTimeout, whose delay has 31 bits. A longer one counts as 1 ms in Node, and as its low 32
#           bits in Chromium and Firefox, which fire at once, too.
# Meets:    servers that send a large `retry:` so that clients stay away, and all code that passes a delay of the other side,
#           such as Retry-After, to setTimeout. Limit it first.
# Exits non-zero if this changes, and 77 if the version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node '@microsoft/fetch-event-source@2.0.1' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { createRequire } from "node:module";

// The two names of a browser that the library uses: a document that is visible, and timers.
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
globalThis.window = globalThis;
const { fetchEventSource } = createRequire(import.meta.url)("@microsoft/fetch-event-source");
process.removeAllListeners("warning"); // TimeoutOverflowWarning, which a browser does not have

const requests = { 2147483647: 0, 2592000000: 0 };
const server = createServer((request, response) => {
  const retry = request.url.slice(1);
  requests[retry] += 1;
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write(`retry: ${retry}\ndata: x\n\n`);
  setTimeout(() => response.destroy(), 20);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
for (const retry of Object.keys(requests)) fetchEventSource(`http://127.0.0.1:${server.address().port}/${retry}`, { openWhenHidden: true });
await new Promise((resolve) => setTimeout(resolve, 3000));
for (const [retry, count] of Object.entries(requests)) console.log(`retry: ${retry} ->`, count > 10 ? "more than 10" : count);
process.exit(requests[2147483647] === 1 && requests[2592000000] > 10 ? 0 : 1);
JAVASCRIPT
