#!/usr/bin/env bash
# @ag-ui/client fails at an event stream whose lines end with CR LF or CR: HttpAgent raises a SyntaxError, and shows nothing.
#
# Guessed:  it takes the three line ends of the standard of event streams: LF, CR LF and CR.
# Version:  @ag-ui/client 1.0.0.
# Seen:     a whole run with the answer "One two"; failed is the number of calls of onRunFailed:
#               LF       resolved, "One two", failed 0
#               CR LF    SyntaxError, "", failed 1
#               CR       SyntaxError, "", failed 1
# Meets:    servers of AG-UI whose library writes CR LF, as sse-starlette does by default.
# Tailrace: Ends the lines of each stream with LF.
# Exits non-zero if this changes, and 77 if the version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node '@ag-ui/client@1.0.0' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { HttpAgent } from "@ag-ui/client";

console.error = () => {}; // The agent logs its errors, too.

const run = { threadId: "t", runId: "r" };
const EVENTS = [
  { type: "RUN_STARTED", ...run },
  { type: "TEXT_MESSAGE_START", messageId: "m", role: "assistant" },
  { type: "TEXT_MESSAGE_CONTENT", messageId: "m", delta: "One " },
  { type: "TEXT_MESSAGE_CONTENT", messageId: "m", delta: "two" },
  { type: "TEXT_MESSAGE_END", messageId: "m" },
  { type: "RUN_FINISHED", ...run },
];
const LINE_ENDS = { LF: "\n", "CR LF": "\r\n", CR: "\r" };
const EXPECTED = { LF: 'resolved, "One two", failed 0', "CR LF": 'SyntaxError, "", failed 1', CR: 'SyntaxError, "", failed 1' };
let line;
const server = createServer((_, response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.end(EVENTS.map((event) => `data: ${JSON.stringify(event)}${line}${line}`).join(""));
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
let isSame = true;
for (const [name, expected] of Object.entries(EXPECTED)) {
  line = LINE_ENDS[name];
  const agent = new HttpAgent({ url: `http://127.0.0.1:${server.address().port}` });
  agent.messages = [{ id: "u", role: "user", content: "hi" }];
  let failed = 0;
  const outcome = await agent.runAgent({}, { onRunFailed: () => void (failed += 1) }).then(() => "resolved", (error) => error.name);
  const shown = agent.messages.slice(1).map(({ content }) => content).join("");
  const seen = `${outcome}, ${JSON.stringify(shown)}, failed ${failed}`;
  console.log(`${name}: ${seen}`);
  isSame &&= seen === expected;
}
process.exit(isSame ? 0 : 1);
JAVASCRIPT
