// Tailrace's transport for `useChat`, whose stream is cancelled, in Node: `cancel-chat.mjs KEY URL JSON`.
// `isCut`: the first connection is lost, and the stream is cancelled while the second one is opened.
import { load } from "./ai-sdk.mjs";

const [key, url, given] = process.argv.slice(2);
const { id, text, isCut = false } = JSON.parse(given);
const { TailraceChatTransport } = await load();

const headers = { authorization: `Bearer ${key}` };
let requests = 0;
let closed = 0;
let reader;

/** Counts the requests, and the responses that the transport closes. */
async function counted(url, init) {
  requests += 1;
  const isFirst = requests === 1;
  // The first stream has failed: its own cancellation says so.
  if (!isFirst && isCut) await reader.cancel().catch(() => {});
  const response = await fetch(url, init);
  const body = response.body.getReader();
  let chunks = 0;
  const stream = new ReadableStream({
    async pull(controller) {
      if (isFirst && isCut && (chunks += 1) > 3) throw new TypeError("network error: cut");
      const { done, value } = await body.read();
      if (done) controller.close();
      else controller.enqueue(value);
    },
    cancel(reason) {
      closed += 1;
      return body.cancel(reason);
    },
  });
  return new Response(stream, { status: response.status, headers: response.headers });
}

const transport = new TailraceChatTransport({ api: `${url}/api/chat`, headers, fetch: counted });
const messages = [{ id: "asked", role: "user", parts: [{ type: "text", text }] }];
reader = (await transport.sendMessages({ chatId: id, messages, trigger: "submit-message" })).getReader();
const { value: start } = await reader.read();
if (isCut) {
  while (!(await reader.read()).done);
} else {
  // Until a read waits for the model.
  for (let isWaiting = false; !isWaiting; await new Promise(setImmediate)) {
    isWaiting = true;
    reader.read().then(() => (isWaiting = false));
    await new Promise(setImmediate);
  }
  await reader.cancel();
}

let outcome = "running";
while (outcome === "running") {
  await new Promise((resolve) => setTimeout(resolve, 50));
  ({ outcome } = await (await fetch(`${url}/v1/turns/${start.messageMetadata.turn}`, { headers })).json());
}
console.log(JSON.stringify({ outcome, requests, closed }));
process.exit(0);
