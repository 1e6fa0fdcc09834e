#!/usr/bin/env bash
# AI SDK runs an approved tool again each time that a request has the same approval.
#
# Guessed:  An approval is used once: the second request with its id gets the result of the first, or is refused.
# Version:  ai 7.0.173, zod 4.1.12.
# Seen:     `streamText` with `toolApproval: "user-approval"` gets the same messages in two requests:
#               runs of the tool: 2
#           The state of an approval is only in the messages of the page, so the server cannot see the first request.
# Meets:    apps in which two tabs show the same chat, or a page repeats a request whose response was lost: the e-mail is
#           sent twice. Store the id of the approval before the tool runs.
# Tailrace: `POST /v1/sessions/{session}/calls/{call}` stores a decision once, and the next turn starts once
#           (docs/AI_SDK.md#approve-tool-calls).
# Exits non-zero if this changes, and 77 if a version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node 'ai@7.0.173' 'zod@4.1.12' <<'JAVASCRIPT'
import { simulateReadableStream, streamText, tool } from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { z } from "zod";

let runs = 0;
const send = tool({ description: "Sends it.", inputSchema: z.object({}), execute: async () => ((runs += 1), "sent") });
const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };
const chunks = [
  { type: "stream-start", warnings: [] },
  { type: "text-start", id: "1" },
  { type: "text-delta", id: "1", delta: "Done." },
  { type: "text-end", id: "1" },
  { type: "finish", finishReason: { unified: "stop", raw: "stop" }, usage },
];
const model = new MockLanguageModelV4({ doStream: async () => ({ stream: simulateReadableStream({ chunks }) }) });
const call = { type: "tool-call", toolCallId: "call-1", toolName: "send", input: {} };
const messages = [
  { role: "user", content: "Send it." },
  { role: "assistant", content: [call, { type: "tool-approval-request", approvalId: "approval-1", toolCallId: "call-1" }] },
  { role: "tool", content: [{ type: "tool-approval-response", approvalId: "approval-1", approved: true }] },
];
for (let request = 0; request < 2; request += 1) {
  await streamText({ model, messages, tools: { send }, toolApproval: { send: "user-approval" } }).consumeStream();
}
console.log("runs of the tool:", runs);
process.exit(runs === 2 ? 0 : 1);
JAVASCRIPT
