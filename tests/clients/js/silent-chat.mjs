// Tailrace's transport for `useChat`, whose first connection becomes silent, in Node: `silent-chat.mjs KEY URL JSON`.
import { load } from "./ai-sdk.mjs";

const [key, url, given] = process.argv.slice(2);
const { id, text } = JSON.parse(given);
const { TailraceChatTransport } = await load();

const { setTimeout: wait } = globalThis;
// Forty seconds of silence take one.
globalThis.setTimeout = (work, ms, ...rest) => wait(work, ms === 40_000 ? 1000 : ms, ...rest);

let requests = 0;

/** After the first bytes nothing comes on the first connection, and no error either. */
async function becomeSilent(url, init) {
  requests += 1;
  const response = await fetch(url, init);
  if (requests > 1) return response;
  let pieces = 0;
  const silent = new TransformStream({ transform: (bytes, controller) => ((pieces += 1) > 3 ? new Promise(() => {}) : controller.enqueue(bytes)) });
  return new Response(response.body.pipeThrough(silent), response);
}

const headers = { authorization: `Bearer ${key}` };
const transport = new TailraceChatTransport({ api: `${url}/api/chat`, headers, fetch: becomeSilent });
const messages = [{ id: "asked", role: "user", parts: [{ type: "text", text }] }];
let answer = "";
for await (const chunk of await transport.sendMessages({ chatId: id, messages, trigger: "submit-message" })) {
  if (chunk.type === "text-delta") answer += chunk.delta;
}
console.log(JSON.stringify({ text: answer, requests }));
process.exit(0);
