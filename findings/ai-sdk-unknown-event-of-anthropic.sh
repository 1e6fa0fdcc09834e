#!/usr/bin/env bash
# AI SDK 7: after one event or block of a type that @ai-sdk/anthropic does not know, useChat shows an error and no answer.
#
# Guessed:  it ignores an unknown event, as Anthropic's documentation of streams asks clients to, and leaves an unknown block out.
# Version:  @ai-sdk/anthropic 4.0.105, ai 7.0.173, @ai-sdk/react 4.0.177, react 19.3.1.
# Seen:     a whole answer, "One two", with an unknown event behind message_start, or with an unknown block before the text:
#               streamText   text "One two", finishReason stop, 1 part `error`
#               useChat      status error, text ""
# Meets:    apps, on the day that the API, a beta header or a gateway adds a type. @ai-sdk/openai ignores unknown events.
# Tailrace: `/v1/messages` passes unknown types on, as a client of that route expects (docs/CLAUDE_API.md); `/api/chat` sends
#           them as data parts, which useChat accepts (docs/AI_SDK.md).
# Exits non-zero if this changes, and 77 if a version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node 'ai@7.0.173' '@ai-sdk/anthropic@4.0.105' '@ai-sdk/react@4.0.177' 'react@19.3.1' 'zod@4.1.12' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { createAnthropic } from "@ai-sdk/anthropic";
import { Chat } from "@ai-sdk/react";
import { convertToModelMessages, DefaultChatTransport, streamText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
const usage = { input_tokens: 1, output_tokens: 1 };
const START = { type: "message_start", message: { id: "msg_1", type: "message", role: "assistant", model: "m", content: [], stop_reason: null, stop_sequence: null, usage } };
const block = (index, content_block, ...deltas) => [
  { type: "content_block_start", index, content_block },
  ...deltas.map((delta) => ({ type: "content_block_delta", index, delta })),
  { type: "content_block_stop", index },
];
const text = (index) => block(index, { type: "text", text: "" }, { type: "text_delta", text: "One two" });
const END = [{ type: "message_delta", delta: { stop_reason: "end_turn", stop_sequence: null }, usage: { output_tokens: 2 } }, { type: "message_stop" }];
const ANSWERS = {
  known: [START, ...text(0), ...END],
  event: [START, { type: "new_event", note: 1 }, ...text(0), ...END],
  block: [START, ...block(0, { type: "new_block", note: 1 }), ...text(1), ...END],
};
const UNKNOWN = 'streamText "One two" stop, error parts 1; useChat error ""';
const EXPECTED = { known: 'streamText "One two" stop, error parts 0; useChat ready "One two"', event: UNKNOWN, block: UNKNOWN };

const listen = async (handle) => {
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    handle(JSON.parse(body), response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${server.address().port}`;
};
// The name of the model chooses the answer.
const baseURL = await listen(({ model }, response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.end(ANSWERS[model].map((event) => `event: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`).join(""));
});
const anthropic = createAnthropic({ baseURL: `${baseURL}/v1`, apiKey: "k" });
const ask = (name, prompt) => streamText({ model: anthropic(name), maxRetries: 0, onError: () => {}, ...prompt });
const api = await listen(async ({ id, messages }, response) => ask(id, { messages: await convertToModelMessages(messages) }).pipeUIMessageStreamToResponse(response));
let isSame = true;
for (const [name, expected] of Object.entries(EXPECTED)) {
  const answer = ask(name, { prompt: "hi" });
  let errors = 0;
  for await (const part of answer.fullStream) errors += part.type === "error";
  const chat = new Chat({ id: name, transport: new DefaultChatTransport({ api }), onError: () => {} });
  await chat.sendMessage({ text: "hi" });
  const parts = chat.messages.filter(({ role }) => role === "assistant").flatMap((message) => message.parts);
  const shown = parts.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
  const seen = `streamText ${JSON.stringify(await answer.text)} ${await answer.finishReason}, error parts ${errors}; useChat ${chat.status} ${JSON.stringify(shown)}`;
  console.log(`${name}: ${seen}`);
  isSame &&= seen === expected;
}
process.exit(isSame ? 0 : 1);
JAVASCRIPT
