#!/usr/bin/env bash
# useChat of AI SDK 5 and 6 shows the text twice when resumeStream() reads an answer again after a lost connection.
#
# Guessed:  the replay from the start replaces the part of the message that is shown, as it does in a page that was reloaded.
# Version:  @ai-sdk/react 2.0.280 with ai 5.0.277, 3.0.328 with 6.0.326, 4.0.177 with 7.0.173; react 19.3.1.
# Seen:     the texts of the answer "One two three.", whose connection was lost after "One two", after resumeStream():
#               AI SDK 5: ["One two","One two three."]
#               AI SDK 6: ["One two","One two three."]
#               AI SDK 7: ["One two three."]
#           5 keeps the state of the message for the resumed stream. 6 starts it anew if its transport has
#           `resumeStreamIsReplay`, and useChat puts an object without this property around the transport; the class Chat
#           does not, and is right. The message of the error must have the word "network" or "fetch", as in Chromium: with
#           Node's "terminated", 5 is right, so a test in Node does not find it.
# Meets:    pages with resumable streams that call resumeStream() in onError or when the network is back.
# Tailrace: Its transport reconnects by itself, and the chat sees no cut (docs/AI_SDK.md).
# Exits non-zero if this changes, and 77 if a version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
answer() {
  run_node "$@" 'react@19.3.1' 'react-dom@19.3.1' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";
import { createElement } from "react";
import { renderToString } from "react-dom/server";

const START = [{ type: "start", messageId: "m1" }, { type: "text-start", id: "t" }, { type: "text-delta", id: "t", delta: "One two" }];
const REST = [{ type: "text-delta", id: "t", delta: " three." }, { type: "text-end", id: "t" }, { type: "finish" }];
const frames = (chunks) => chunks.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join("");

// The POST breaks off in the answer. The GET replays the answer from its start, and ends it.
const server = createServer((request, response) => {
  response.writeHead(200, { "content-type": "text/event-stream", "x-vercel-ai-ui-message-stream": "v1" });
  response.write(frames(START));
  if (request.method === "POST") setTimeout(() => response.destroy(), 200);
  else response.end(`${frames(REST)}data: [DONE]\n\n`);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));

/** A lost connection as in Chromium, which names it "network error". */
async function fetchAsChromium(...request) {
  const response = await fetch(...request);
  const reader = response.body.getReader();
  async function pull(controller) {
    const { value, done } = await reader.read().catch(() => {
      throw new TypeError("network error");
    });
    if (done) controller.close();
    else controller.enqueue(value);
  }
  return new Response(new ReadableStream({ pull }), response);
}

// One rendering is enough: the hook returns the functions of its chat, and `onFinish` has the messages.
let chat, messages;
function Page() {
  const transport = new DefaultChatTransport({ api: `http://127.0.0.1:${server.address().port}/chat`, fetch: fetchAsChromium });
  chat = useChat({ id: "c", transport, onError() {}, onFinish: (end) => (messages = end.messages) });
  return null;
}
renderToString(createElement(Page));
await chat.sendMessage({ text: "hi" });
await chat.resumeStream();
const answers = messages.filter((message) => message.role === "assistant");
console.log(JSON.stringify(answers.flatMap((message) => message.parts.filter((part) => part.type === "text").map((part) => part.text))));
process.exit(0);
JAVASCRIPT
}
{
  answer '@ai-sdk/react@2.0.280' 'ai@5.0.277'
  answer '@ai-sdk/react@3.0.328' 'ai@6.0.326'
  answer '@ai-sdk/react@4.0.177' 'ai@7.0.173'
} > "$folder/seen"
paste -d ' ' <(printf 'AI SDK %s:\n' 5 6 7) "$folder/seen"
[ "$(cat "$folder/seen")" = '["One two","One two three."]
["One two","One two three."]
["One two three."]' ]
