#!/usr/bin/env bash
# htmx 2 with its extension sse opens a new EventSource after a 204, and shows the whole answer again, for ever.
#
# Guessed:  a 204 ends the stream, as the standard says for EventSource: no further request.
# Version:  htmx.org 2.0.11, htmx-ext-sse 2.2.4, Chromium (seen with 156).
# Seen:     a page with sse-connect, whose server sends one event ("word", id 1), and 204 to Last-Event-ID 1, for 4 s:
#               first requests: new, id 1, new, id 1
#               the page shows "word word " or more of it: true
#           The EventSource is closed by the 204. The extension sees an error, and makes another one, which sends no id.
# Meets:    servers that end a finished stream with 204, as EventSource needs. Send an event with a name of its own at the end,
#           and name it in `sse-close`.
# Tailrace: Ends a stream for htmx with the event `done`, which a page names in `sse-close` (docs/API.md#dialecthtml).
# Exits non-zero if this changes, and 77 if a version cannot be installed, or Node or Chromium is not there.
. "$(dirname "$0")/setup.sh"
run_node 'htmx.org@2.0.11' 'htmx-ext-sse@2.2.4' <<'JAVASCRIPT'
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { openPage } from "./browsers.mjs";

const PAGE = `<script src="/node_modules/htmx.org/dist/htmx.js"></script><script src="/node_modules/htmx-ext-sse/sse.js"></script>
  <div hx-ext="sse" sse-connect="/stream" sse-swap="message" hx-swap="beforeend"></div>
  <script>setInterval(() => fetch("/shown", { method: "POST", body: document.querySelector("div").textContent }), 500);</script>`;
const requests = [];
let shown = "";
const server = createServer((request, response) => {
  if (request.url === "/") response.writeHead(200, { "content-type": "text/html" }).end(PAGE);
  else if (request.url.startsWith("/node_modules/")) response.writeHead(200).end(readFileSync(new URL(`.${request.url}`, import.meta.url)));
  else if (request.url === "/shown") request.on("data", (data) => (shown = String(data))).on("end", () => response.end());
  else if (request.url === "/stream") {
    const id = request.headers["last-event-id"];
    requests.push(id ? `id ${id}` : "new");
    if (id) response.writeHead(204).end();
    else response.writeHead(200, { "content-type": "text/event-stream" }).end("retry: 300\nid: 1\ndata: word \n\n");
  } else response.writeHead(404).end();
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const close = openPage("chromium", `http://127.0.0.1:${server.address().port}/`);
for (let n = 0; n < 600 && !requests.length; n++) await new Promise((resolve) => setTimeout(resolve, 100));
await new Promise((resolve) => setTimeout(resolve, 4000));
await close();
const first = requests.slice(0, 4).join(", ");
console.log("first requests:", first);
console.log('the page shows "word word " or more of it:', shown.startsWith("word word "));
process.exit(first === "new, id 1, new, id 1" && shown.startsWith("word word ") ? 0 : 1);
JAVASCRIPT
