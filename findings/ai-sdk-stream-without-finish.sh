#!/usr/bin/env bash
# useChat takes an answer that ends cleanly without `finish` for a complete one.
#
# Guessed:  a UI message stream that ends in the middle of a text, without text-end, finish and [DONE], is an error.
# Version:  @ai-sdk/react 4.0.177 with ai 7.0.173; react 19.3.1.
# Seen:     the response ends after the delta "One two":
#               status ready, errors 0, isError false, isDisconnect false, finishReason undefined
# Meets:    pages behind a proxy or server that ends a response cleanly when its backend dies: users see half an answer as
#           the whole. Look at `finishReason` in onFinish, and let the server break the connection or send an error.
# Tailrace: Leaves out the last chunk of the body when it closes a stream early, which the browser reports as an error
#           (docs/AI_SDK.md).
# Exits non-zero if this changes, and 77 if the version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node '@ai-sdk/react@4.0.177' 'ai@7.0.173' 'react@19.3.1' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { Chat } from "@ai-sdk/react";
import { DefaultChatTransport } from "ai";

const CHUNKS = [{ type: "start", messageId: "m1" }, { type: "text-start", id: "t" }, { type: "text-delta", id: "t", delta: "One two" }];
const server = createServer((request, response) => {
  response.writeHead(200, { "content-type": "text/event-stream", "x-vercel-ai-ui-message-stream": "v1" });
  response.end(CHUNKS.map((chunk) => `data: ${JSON.stringify(chunk)}\n\n`).join(""));
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
let errors = 0;
let end;
const transport = new DefaultChatTransport({ api: `http://127.0.0.1:${server.address().port}/chat` });
const chat = new Chat({ id: "c", transport, onError: () => (errors += 1), onFinish: (value) => (end = value) });
await chat.sendMessage({ text: "hi" });
const seen = `status ${chat.status}, errors ${errors}, isError ${end.isError}, isDisconnect ${end.isDisconnect}, finishReason ${end.finishReason}`;
console.log(seen);
process.exit(seen === "status ready, errors 0, isError false, isDisconnect false, finishReason undefined" ? 0 : 1);
JAVASCRIPT
