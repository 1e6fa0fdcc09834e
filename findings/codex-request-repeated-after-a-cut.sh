#!/usr/bin/env bash
# Codex repeats a request whose stream was cut with the part of the answer that it has as the last message.
#
# Guessed:  after a cut, the same request comes again, or the whole answer is read from its start.
# Version:  @openai/codex 0.171.0, with a provider of its own and `wire_api = "responses"`, over HTTP.
# Seen:     the stream ends after `response.output_item.done` of a message. The last item of `input`:
#               first request:    message of the user
#               repeated request: message of the assistant, with the id of the cut answer's item
#           Over a WebSocket, it does the same (`python -m tests.clients.codex`). An item of reasoning is repeated, too:
#           after it, each cut within the text has this effect.
# Meets:    servers with the Responses API whose model cannot continue a message of the assistant, such as Claude's
#           current models. They refuse the request, and Codex ends its turn with an error. Another model is called a
#           second time, also if the answer was whole.
# Tailrace: With `Idempotency-Key: auto` in `http_headers`, streams the rest of the same response
#           (docs/PROGRAMS.md#agents-and-command-line-programs).
# Exits non-zero if this changes, and 77 if the version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node '@openai/codex@0.171.0' <<'JAVASCRIPT'
import { spawn } from "node:child_process";
import { mkdtempSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ITEM = { id: "msg_1", type: "message", role: "assistant", status: "completed", content: [{ type: "output_text", text: "Paris", annotations: [] }] };
const EVENTS = [
  { type: "response.created", response: { id: "resp_1", status: "in_progress" } },
  { type: "response.output_item.added", output_index: 0, item: { ...ITEM, status: "in_progress", content: [] } },
  { type: "response.output_item.done", output_index: 0, item: ITEM },
];
const END = { type: "response.completed", response: { id: "resp_1", status: "completed", output: [], usage: { input_tokens: 1, output_tokens: 1, total_tokens: 2 } } };
const last = [];
const server = createServer((request, response) => {
  let body = "";
  request.on("data", (data) => (body += data));
  request.on("end", () => {
    if (request.method !== "POST") return response.writeHead(404).end();
    last.push(JSON.parse(body).input.at(-1));
    response.writeHead(200, { "content-type": "text/event-stream" });
    const events = last.length === 1 ? EVENTS : [EVENTS[0], END];
    response.write(events.map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join(""));
    if (last.length > 1) return response.end();
    setTimeout(() => response.destroy(), 500);
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

const home = mkdtempSync(join(tmpdir(), "codex-"));
const config = `
model = "m"
model_provider = "own"
web_search = "disabled"
check_for_update_on_startup = false
analytics.enabled = false
features.plugins = false
[model_providers.own]
name = "own"
base_url = "http://127.0.0.1:${server.address().port}/v1"
env_key = "OWN_KEY"
wire_api = "responses"
`;
writeFileSync(join(home, "config.toml"), config);
const codex = join(dirname(fileURLToPath(import.meta.url)), "node_modules/.bin/codex");
const env = { PATH: process.env.PATH, HOME: home, CODEX_HOME: home, OWN_KEY: "none", NO_PROXY: "127.0.0.1" };
const child = spawn(codex, ["exec", "--skip-git-repo-check", "Where?"], { cwd: home, env, stdio: "ignore" });
process.on("SIGTERM", () => (child.kill(), process.exit(143)));
const status = await new Promise((resolve) => child.on("exit", resolve));
const seen = last.map((item) => `${item.type} of the ${item.role}, id ${item.id}`);
console.log(`first request:    ${seen[0]}\nrepeated request: ${seen[1]}\nCodex ended with status ${status}`);
process.exit(last.length === 2 && last[0].role === "user" && seen[1] === "message of the assistant, id msg_1" ? 0 : 1);
JAVASCRIPT
