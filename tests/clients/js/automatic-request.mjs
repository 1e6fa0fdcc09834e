// Calls the transport as useChat does: with a question, then with the results of tools and the same `body`. Prints the
// keys of the two requests.
import { load } from "./ai-sdk.mjs";

const { TailraceChatTransport } = await load();

const keys = [];
const fetch = async (url, { body }) => {
  keys.push(JSON.parse(body).idempotency_key);
  return new Response('data: {"type":"finish"}\n\ndata: [DONE]\n\n', { headers: { "content-type": "text/event-stream" } });
};
const transport = new TailraceChatTransport({ api: "http://localhost/api/chat", fetch });
for (const role of ["user", "assistant"]) {
  const messages = [{ id: role, role, parts: [] }];
  await transport.sendMessages({ trigger: "submit-message", chatId: "c", messages, body: { idempotency_key: "own" } });
}
console.log(JSON.stringify({ keys }));
