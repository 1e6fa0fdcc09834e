#!/usr/bin/env bash
# Chromium's EventSource gives up for good at a 503, although it reconnects after each lost connection.
#
# Guessed:  EventSource waits and tries again, because a 503 with Retry-After says that the failure passes.
# Version:  Chromium (seen with 156); Firefox (seen with 153) does the same.
# Seen:     requests within 10 s, of which the server answers the second as named, with `retry: 300`:
#               a lost connection:    3 or more
#               503, retry-after: 1:  2, readyState 2
#           readyState 2 is closed. The standard makes each status but 200 final, so this is no fault of the browser.
# Meets:    every deployment behind a load balancer: a page that resumes in the second without a backend loses the rest of its
#           stream. Answer 200 and end the body, or open the EventSource again in `onerror` if it is closed.
# Tailrace: Answers a reader that resumes with `200`, and continues when the log answers (ADR 13).
# Exits non-zero if this changes, and 77 if Node or Chromium is not there.
. "$(dirname "$0")/setup.sh"
run_node <<'JAVASCRIPT'
import { createServer } from "node:http";
import { openPage } from "./browsers.mjs";

const PAGE = `<script>
  const sources = ["lost", "503"].map((name) => new EventSource("/" + name));
  setInterval(() => fetch("/states", { method: "POST", body: sources.map((source) => source.readyState).join() }), 500);</script>`;
const requests = { "/lost": 0, "/503": 0 };
let states = "";
const server = createServer((request, response) => {
  if (request.url === "/") response.writeHead(200, { "content-type": "text/html" }).end(PAGE);
  else if (request.url === "/states") request.on("data", (data) => (states = String(data))).on("end", () => response.end());
  else if (!(request.url in requests)) response.writeHead(404).end();
  else if (++requests[request.url] !== 2) {
    response.writeHead(200, { "content-type": "text/event-stream" }).write("retry: 300\nid: 1\ndata: x\n\n");
    setTimeout(() => response.destroy(), 200);
  } else if (request.url === "/lost") response.destroy();
  else response.writeHead(503, { "retry-after": "1" }).end();
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const close = openPage("chromium", `http://127.0.0.1:${server.address().port}/`);
for (let n = 0; n < 600 && !requests["/503"]; n++) await new Promise((resolve) => setTimeout(resolve, 100));
await new Promise((resolve) => setTimeout(resolve, 10_000));
await close();
const state = Number(states.split(",")[1]);
console.log("a lost connection:   ", requests["/lost"] >= 3 ? "3 or more" : requests["/lost"]);
console.log("503, retry-after: 1: ", `${requests["/503"]}, readyState ${state}`);
process.exit(requests["/lost"] >= 3 && requests["/503"] === 2 && state === 2 ? 0 : 1);
JAVASCRIPT
