#!/usr/bin/env bash
# Firefox takes the `retry:` of an event stream modulo 2^32 ms (49.7 days): a longer one may mean "at once".
#
# Guessed:  a very large `retry:` is a long wait, or is ignored.
# Version:  Firefox (seen with 153.8 ESR). Chromium (seen with 156) waits in each case.
# Seen:     requests of an EventSource within 10 s, whose stream ends after its first event, by `retry:`:
#               4294967295: 1
#               4294967297: more than 1
#           4294967297 is 2^32 + 1. Firefox makes a millisecond of it, and then half a second, its shortest wait.
# Meets:    servers that ask pages to stay away with a very large `retry:`: their number of requests grows instead. Answer 204,
#           which is final, or keep `retry:` below 49 days.
# Tailrace: Sends a `retry:` of 0.5 to 2 s in a stream, and the seconds of `Retry-After` where an EventSource is to come
#           later.
# Exits non-zero if this changes, and 77 if Node or Firefox is not there.
. "$(dirname "$0")/setup.sh"
run_node <<'JAVASCRIPT'
import { createServer } from "node:http";
import { openPage } from "./browsers.mjs";

const requests = { 4294967295: 0, 4294967297: 0 };
const PAGE = `<script>for (const retry of ${JSON.stringify(Object.keys(requests))}) new EventSource("/" + retry);</script>`;
const server = createServer((request, response) => {
  const retry = request.url.slice(1);
  if (!retry) response.writeHead(200, { "content-type": "text/html" }).end(PAGE);
  else if (!(retry in requests)) response.writeHead(404).end();
  else {
    requests[retry] += 1;
    response.writeHead(200, { "content-type": "text/event-stream" }).end(`retry: ${retry}\nid: 1\ndata: x\n\n`);
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const close = openPage("firefox", `http://127.0.0.1:${server.address().port}/`);
for (let n = 0; n < 900 && !requests[4294967297]; n++) await new Promise((resolve) => setTimeout(resolve, 100));
await new Promise((resolve) => setTimeout(resolve, 10_000));
await close();
for (const [retry, count] of Object.entries(requests)) console.log(`${retry}:`, count > 1 ? "more than 1" : count);
process.exit(requests[4294967295] === 1 && requests[4294967297] > 1 ? 0 : 1);
JAVASCRIPT
