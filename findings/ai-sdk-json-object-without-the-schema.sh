#!/usr/bin/env bash
# AI SDK's openai-compatible provider leaves out the schema of an object, and asks for `json_object` only.
#
# Guessed:  `Output.object({ schema })` is sent as `response_format` with `json_schema`, as by the provider for OpenAI.
# Version:  ai 7.0.173 with @ai-sdk/openai-compatible 3.0.92, zod 4.1.12.
# Seen:     `response_format` of the request that the server receives:
#               default:                   {"type":"json_object"}
#               supportsStructuredOutputs: json_schema
#           By default, no part of the request names the schema. The SDK checks the answer with it, and logs a warning.
# Meets:    servers with OpenAI's API, and their users: the model knows no key that the program wants, unless the
#           prompt names it. Set `supportsStructuredOutputs: true` if the server takes schemas.
# Tailrace: Takes `json_object` for a schema of any object, asks the model for JSON, and validates the answer
#           (docs/API.md#structured-output).
# Exits non-zero if this changes, and 77 if a version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node 'ai@7.0.173' '@ai-sdk/openai-compatible@3.0.92' 'zod@4.1.12' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output } from "ai";
import { z } from "zod";

globalThis.AI_SDK_LOG_WARNINGS = false;
const CHOICE = { index: 0, message: { role: "assistant", content: '{"city":"Paris"}' }, finish_reason: "stop" };
let received = "";
const server = createServer((request, response) => {
  received = "";
  request.on("data", (data) => (received += data));
  request.on("end", () => {
    response.writeHead(200, { "content-type": "application/json" });
    response.end(JSON.stringify({ id: "c", object: "chat.completion", created: 1, model: "m", choices: [CHOICE] }));
  });
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

async function request(options) {
  const provider = createOpenAICompatible({ name: "p", baseURL: `http://127.0.0.1:${server.address().port}/v1`, ...options });
  const output = Output.object({ schema: z.object({ city: z.string() }) });
  await generateText({ model: provider("m"), prompt: "Where?", output });
  return received;
}

const [first, second] = [await request({}), await request({ supportsStructuredOutputs: true })];
const formats = [first, second].map((body) => JSON.parse(body).response_format);
console.log("default:                  ", JSON.stringify(formats[0]));
console.log("supportsStructuredOutputs:", formats[1].type);
const isAsDescribed = JSON.stringify(formats[0]) === '{"type":"json_object"}' && !first.includes("city") && second.includes("city");
process.exit(isAsDescribed && formats[1].type === "json_schema" ? 0 : 1);
JAVASCRIPT
