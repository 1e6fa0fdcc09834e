// Vercel's `resumable-stream` over Redis, behind Node's own HTTP server. `node resumable.mjs`; it prints its URL.
// POST /chat begins an answer; GET /chat/ID?skip=N resumes it after N characters.
import Anthropic from "@anthropic-ai/sdk";
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { createClient } from "redis";
import { createResumableStreamContext } from "resumable-stream";

const anthropic = new Anthropic();
const publisher = createClient({ url: process.env.REDIS_URL });
const subscriber = createClient({ url: process.env.REDIS_URL });
await Promise.all([publisher.connect(), subscriber.connect()]);
const streams = createResumableStreamContext({ waitUntil: null, publisher, subscriber });

function answer(message) {
  return new ReadableStream({
    async start(controller) {
      const events = await anthropic.messages.create({
        model: "claude-sonnet-5-5", max_tokens: 4096, stream: true, messages: [{ role: "user", content: message }],
      });
      for await (const event of events) {
        if (event.type === "content_block_delta")
          controller.enqueue(`data: ${JSON.stringify({ type: "delta", text: event.delta.text })}\n\n`);
      }
      controller.enqueue(`data: {"type":"done"}\n\n`);
      controller.close();
    },
  });
}

async function respond(request, response) {
  const url = new URL(request.url, "http://localhost");
  let stream;
  if (request.method === "POST") {
    let body = "";
    for await (const part of request) body += part;
    const id = randomUUID();
    response.setHeader("stream-path", `/chat/${id}`);
    stream = await streams.createNewResumableStream(id, () => answer(JSON.parse(body).message));
  } else {
    const skip = Number(url.searchParams.get("skip") ?? 0);
    stream = await streams.resumeExistingStream(url.pathname.split("/")[2], skip);
  }
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.flushHeaders();
  if (stream) for await (const part of stream) response.write(part);
  response.end();
}

const server = createServer((request, response) => {
  respond(request, response).catch((error) => response.destroy(error));
});
server.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
