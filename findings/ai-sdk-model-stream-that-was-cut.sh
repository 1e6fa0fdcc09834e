#!/usr/bin/env bash
# AI SDK 7: if the connection to the model breaks within an answer, useChat shows half of it as complete, without any callback.
#
# Guessed:  streamText calls onError, and the page has the status `error`, as after an `error` event of the model.
# Version:  ai 7.0.173, @ai-sdk/anthropic 4.0.105, @ai-sdk/openai 4.0.118, @ai-sdk/react 4.0.177, react 19.3.1.
# Seen:     a route with streamText() and pipeUIMessageStreamToResponse(), whose model sends "One two", and then
#               ends the answer        page ready, finishReason stop; server: onFinish
#               sends an error event   page error; server: onError, onFinish
#               breaks the connection  page ready, finishReason undefined; server: nothing, an unhandled rejection
#           This holds for Anthropic's protocol, chat completions and responses.
# Meets:    apps whose own server calls the model, when it is restarted or its connection is reset: users see half an answer as
#           the whole, and what onFinish of streamText() would store is lost. Look at finishReason in onFinish of useChat.
# Tailrace: A page that reads `/api/chat` of the gateway resumes the answer; docs/AI_SDK.md says what a route with streamText()
#           has to do.
# Exits non-zero if this changes, and 77 if a version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node 'ai@7.0.173' '@ai-sdk/anthropic@4.0.105' '@ai-sdk/openai@4.0.118' '@ai-sdk/react@4.0.177' 'react@19.3.1' 'zod@4.1.12' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { Chat } from "@ai-sdk/react";
import { convertToModelMessages, DefaultChatTransport, streamText } from "ai";

globalThis.AI_SDK_LOG_WARNINGS = false;
let rejections = 0;
process.on("unhandledRejection", () => (rejections += 1));

const usage = { input_tokens: 1, output_tokens: 1 };
const response = (status) => ({ id: "resp_1", object: "response", created_at: 1, status, model: "m", output: [], error: null, usage, incomplete_details: null });
const chunk = (delta, finish_reason = null) => ({ id: "c", object: "chat.completion.chunk", created: 1, model: "m", choices: [{ index: 0, delta, finish_reason }] });
const PROTOCOLS = {
  "/v1/messages": {
    begin: [
      { type: "message_start", message: { id: "msg_1", type: "message", role: "assistant", model: "m", content: [], stop_reason: null, stop_sequence: null, usage } },
      { type: "content_block_start", index: 0, content_block: { type: "text", text: "" } },
      { type: "content_block_delta", index: 0, delta: { type: "text_delta", text: "One two" } },
    ],
    end: [
      { type: "content_block_stop", index: 0 },
      { type: "message_delta", delta: { stop_reason: "end_turn", stop_sequence: null }, usage: { output_tokens: 2 } },
      { type: "message_stop" },
    ],
    error: [{ type: "error", error: { type: "overloaded_error", message: "Overloaded" } }],
  },
  "/v1/chat/completions": {
    begin: [chunk({ role: "assistant", content: "One two" })],
    end: [chunk({}, "stop")],
    error: [{ error: { message: "Overloaded", type: "server_error", code: null, param: null } }],
  },
  "/v1/responses": {
    begin: [
      { type: "response.created", response: response("in_progress") },
      { type: "response.output_item.added", output_index: 0, item: { id: "msg_1", type: "message", role: "assistant", status: "in_progress", content: [] } },
      { type: "response.output_text.delta", item_id: "msg_1", output_index: 0, content_index: 0, delta: "One two" },
    ],
    end: [{ type: "response.completed", response: response("completed") }],
    error: [{ type: "error", sequence_number: 3, error: { type: "server_error", code: "server_error", message: "Overloaded", param: null } }],
  },
};
let end;
const handleModel = (request, _, response) => {
  const { begin, ...ends } = PROTOCOLS[request.url];
  response.writeHead(200, { "content-type": "text/event-stream" });
  for (const event of [...begin, ...(ends[end] ?? [])]) response.write(`${event.type ? `event: ${event.type}\n` : ""}data: ${JSON.stringify(event)}\n\n`);
  if (end === "cut") setTimeout(() => response.destroy(), 100);
  else response.end();
};
let model;
let called;
const handlePage = async (_, body, response) => {
  const messages = await convertToModelMessages(body.messages);
  const note = (name) => () => void called.push(name);
  streamText({ model, messages, maxRetries: 0, onError: note("onError"), onFinish: note("onFinish"), onAbort: note("onAbort") }).pipeUIMessageStreamToResponse(response);
};
const listen = async (handle) => {
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const part of request) body += part;
    await handle(request, JSON.parse(body), response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${server.address().port}`;
};
const options = { baseURL: `${await listen(handleModel)}/v1`, apiKey: "k" };
const transport = new DefaultChatTransport({ api: await listen(handlePage) });
const [anthropic, openai] = [createAnthropic(options), createOpenAI(options)];

const EXPECTED = {
  end: "page ready, errors 0, finishReason stop, text One two; server onFinish",
  error: "page error, errors 1, finishReason undefined, text One two; server onError onFinish",
  cut: "page ready, errors 0, finishReason undefined, text One two; server nothing",
};
let isSame = true;
for (const [name, found] of Object.entries({ anthropic: anthropic("m"), chat: openai.chat("m"), responses: openai.responses("m") }))
  for (const [how, expected] of Object.entries(EXPECTED)) {
    [model, end, called] = [found, how, []];
    let [errors, finishReason] = [0, "onFinish was not called"];
    const chat = new Chat({ id: name + how, transport, onError: () => (errors += 1), onFinish: (value) => ({ finishReason } = value) });
    await chat.sendMessage({ text: "hi" });
    const text = chat.messages.at(-1).parts.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");
    const seen = `page ${chat.status}, errors ${errors}, finishReason ${finishReason}, text ${text}; server ${called.join(" ") || "nothing"}`;
    console.log(`${name} ${how}: ${seen}`);
    isSame &&= seen === expected;
  }
console.log(`unhandled rejections: ${rejections}`);
process.exit(isSame && rejections === 3 ? 0 : 1);
JAVASCRIPT
