// A page of `useChat` that sends finished tool calls automatically, and `stops` the answer while the input of a call
// arrives: `stop-tool.mjs VERSION KEY URL JSON`. Prints the state of the call, and the paths of the page's requests.
import { load } from "./ai-sdk.mjs";

const [version, key, url, given] = process.argv.slice(2);
const { id, text, body, stops = true } = JSON.parse(given);
const { TailraceChatTransport, Chat, sdk } = await load(version);

const requests = [];
const headers = { authorization: `Bearer ${key}` };
const send = (address, init) => {
  requests.push(`${init.method} ${new URL(address).pathname}`);
  return fetch(address, init);
};
const chat = new Chat({
  id,
  transport: new TailraceChatTransport({ api: `${url}/api/chat`, headers, body, fetch: send }),
  sendAutomaticallyWhen: sdk.lastAssistantMessageIsCompleteWithToolCalls,
});
const call = () => chat.messages.at(-1)?.parts.find((part) => part.type === "tool-look");
const asking = chat.sendMessage({ text });
while (!call()) await new Promise((resolve) => setTimeout(resolve, 5));
if (stops) await fetch(`${url}/api/chat/${id}/stop`, { method: "POST", headers });
await asking;
console.log(JSON.stringify({ status: chat.status, state: call().state, requests }));
process.exit(0);
