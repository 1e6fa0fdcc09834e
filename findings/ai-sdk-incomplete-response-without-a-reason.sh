#!/usr/bin/env bash
# @ai-sdk/openai takes a response that ends as `response.incomplete` without a reason for a whole answer: finishReason `stop`.
#
# Guessed:  only `response.completed` gives `stop`; each other end gives another finishReason or an error.
# Version:  @ai-sdk/openai 4.0.118 with ai 7.0.173.
# Seen:     finishReason of the answer "One two" for each last event:
#               response.completed                                    stop
#               response.incomplete, reason max_output_tokens         length
#               response.incomplete, reason cancelled                 other
#               response.incomplete, status cancelled, details null   stop
#               none, a clean end of the body                         interrupted
# Meets:    servers of the Responses API that end a cancelled response in this way: apps store half an answer as the whole.
# Tailrace: Names a reason at each such end. A cancelled response has `cancelled`, so AI SDK gives `other` (docs/OPENAI.md,
#           docs/AI_SDK.md).
# Exits non-zero if this changes, and 77 if a version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node 'ai@7.0.173' '@ai-sdk/openai@4.0.118' 'zod@4.1.12' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { createOpenAI } from "@ai-sdk/openai";
import { streamText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const usage = { input_tokens: 1, output_tokens: 2, total_tokens: 3, input_tokens_details: { cached_tokens: 0 }, output_tokens_details: { reasoning_tokens: 0 } };
const response = (status, reason) => ({ id: "resp_1", object: "response", created_at: 1, status, model: "m", output: [], error: null, usage, incomplete_details: reason ? { reason } : null });
const end = (type, status, reason) => [{ type, response: response(status, reason) }];
const BEGIN = [
  { type: "response.created", response: response("in_progress") },
  { type: "response.output_item.added", output_index: 0, item: { id: "msg_1", type: "message", role: "assistant", status: "in_progress", content: [] } },
  { type: "response.output_text.delta", item_id: "msg_1", output_index: 0, content_index: 0, delta: "One two" },
];
const ENDS = {
  completed: end("response.completed", "completed"),
  max_output_tokens: end("response.incomplete", "incomplete", "max_output_tokens"),
  cancelled: end("response.incomplete", "cancelled", "cancelled"),
  "no reason": end("response.incomplete", "cancelled"),
  "no end": [],
};
const EXPECTED = { completed: "stop", max_output_tokens: "length", cancelled: "other", "no reason": "stop", "no end": "interrupted" };
// The name of the model chooses the end.
const server = createServer(async (request, reply) => {
  let body = "";
  for await (const part of request) body += part;
  reply.writeHead(200, { "content-type": "text/event-stream" });
  const events = [...BEGIN, ...ENDS[JSON.parse(body).model]];
  reply.end(events.map((event, number) => `event: ${event.type}\ndata: ${JSON.stringify({ ...event, sequence_number: number })}\n\n`).join(""));
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const openai = createOpenAI({ baseURL: `http://127.0.0.1:${server.address().port}/v1`, apiKey: "k" });
let isSame = true;
for (const [name, expected] of Object.entries(EXPECTED)) {
  const answer = streamText({ model: openai.responses(name), prompt: "hi", maxRetries: 0 });
  const seen = [await answer.text, await answer.finishReason];
  console.log(`${name}: ${seen.join(", finishReason ")}`);
  isSame &&= seen.join() === `One two,${expected}`;
}
process.exit(isSame ? 0 : 1);
JAVASCRIPT
