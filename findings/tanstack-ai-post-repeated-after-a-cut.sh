#!/usr/bin/env bash
# TanStack AI's client repeats a POST whose stream was cut if the events have an `id:`, and joins the parts of two answers.
#
# Guessed:  fetchServerSentEvents() sends a POST once, and ignores `id:`; a cut is an error.
# Version:  @tanstack/ai-client 0.33.2, @tanstack/ai 0.58.0.
# Seen:     a server that starts a new answer at each POST: "One two three", which breaks off after "One ", then "Uno dos tres":
#               events without `id:`   1 POST, status error, text "One "
#               events with `id:`      2 POSTs, the second with Last-Event-ID: 3, status ready, text "One dos tres"
#           It leaves out the events of the second answer whose ids it has seen. A clean end without RUN_FINISHED is the same,
#           but without `id:` the status is ready.
# Meets:    servers that number their events for another client, and call the model at each POST: the question is paid for twice,
#           and the page shows a mixture of two answers without an error.
# Tailrace: A POST with `Last-Event-ID` continues its answer instead of starting another one.
# Exits non-zero if this changes, and 77 if a version cannot be installed or Node is not there.
. "$(dirname "$0")/setup.sh"
run_node '@tanstack/ai-client@0.33.2' '@tanstack/ai@0.58.0' <<'JAVASCRIPT'
import { createServer } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";

process.on("unhandledRejection", () => {});

const event = (type, fields) => ({ type, timestamp: 1, ...fields });
const run = { threadId: "t", runId: "r" };
const answer = (...words) => [
  event("RUN_STARTED", run),
  event("TEXT_MESSAGE_START", { messageId: "m", role: "assistant" }),
  ...words.map((delta) => event("TEXT_MESSAGE_CONTENT", { messageId: "m", delta })),
  event("TEXT_MESSAGE_END", { messageId: "m" }),
  event("RUN_FINISHED", run),
];
const FIRST = answer("One ", "two ", "three").slice(0, 3);
const CASES = {
  "without ids, cut": "POSTs with Last-Event-ID none; status error, One ",
  "without ids, clean end": "POSTs with Last-Event-ID none; status ready, One ",
  "with ids, cut": "POSTs with Last-Event-ID none, 3; status ready, One dos tres",
  "with ids, clean end": "POSTs with Last-Event-ID none, 3; status ready, One dos tres",
};
let name;
let posts;
const server = createServer(async (request, response) => {
  for await (const _ of request);
  posts.push(request.headers["last-event-id"] ?? "none");
  const isFirst = posts.length === 1;
  const frame = (one, index) => `${name.startsWith("with ids") ? `id: ${index + 1}\n` : ""}data: ${JSON.stringify(one)}\n\n`;
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write((isFirst ? FIRST : answer("Uno ", "dos ", "tres")).map(frame).join(""));
  setTimeout(() => (isFirst && name.endsWith("cut") ? response.destroy() : response.end()), 100);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
let isSame = true;
for (const [one, expected] of Object.entries(CASES)) {
  [name, posts] = [one, []];
  const client = new ChatClient({ connection: fetchServerSentEvents(`http://127.0.0.1:${server.address().port}`), onError: () => {} });
  await client.sendMessage("hi");
  await sleep(200); // The text follows the status.
  const parts = client.getMessages().filter(({ role }) => role === "assistant").flatMap((message) => message.parts);
  const seen = `POSTs with Last-Event-ID ${posts.join(", ")}; status ${client.getStatus()}, ${parts.map(({ content }) => content).join("")}`;
  console.log(`${one}: ${seen}`);
  isSame &&= seen === expected;
}
process.exit(isSame ? 0 : 1);
JAVASCRIPT
