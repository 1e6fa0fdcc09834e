// A call that waits in a chat of `useChat`: `decide-in-tabs.mjs VERSION KEY URL CHAT [OUTPUT [OUTPUT ...]]`. Without an output,
// a page asks. With outputs, as many tabs open the chat and decide at once, each with its own; `denied` denies. Then a tab that
// has not decided reads the turn that the decisions have started, the first tab asks again, and a page without messages reads
// that turn. Prints a line for each.
import { decide } from "../../../web/tailrace.js";
import { load } from "./ai-sdk.mjs";

const [version, key, url, id, ...outputs] = process.argv.slice(2);
const { TailraceChatTransport, Chat } = await load(version);
const headers = { authorization: `Bearer ${key}` };
const body = { tools: [{ name: "look", input_schema: { type: "object" } }] };
const DENIED = "the user denied this tool call";

async function open() {
  const found = await fetch(`${url}/api/chat/${id}/messages`, { headers });
  const transport = new TailraceChatTransport({ api: `${url}/api/chat`, headers, body });
  return new Chat({ id, transport, messages: found.ok ? await found.json() : [] });
}

const SHOWN = { text: (part) => part.text, "tool-look": ({ state, output, errorText }) => [state, output ?? errorText ?? null] };
const shown = ({ status, error, messages }, refused = null) => {
  const parts = messages.filter(({ role }) => role === "assistant").map((one) => one.parts.flatMap((part) => (part.type in SHOWN ? [SHOWN[part.type](part)] : [])));
  return { status, error: error?.message ?? null, refused, parts, turns: messages.flatMap(({ metadata }) => metadata?.turn ?? []) };
};

let decided;

async function decideIn(tab, output) {
  const { toolCallId } = tab.messages.at(-1).parts.find(({ state }) => state === "input-available");
  const decision = output === "denied" ? { decision: "denied" } : { result: output };
  const local = output === "denied" ? { state: "output-error", errorText: DENIED } : { output };
  try {
    const { next } = await decide(id, toolCallId, decision, { url, headers });
    decided = next;
    await tab.addToolOutput({ tool: "look", toolCallId, ...local });
    await tab.resumeStream({ metadata: { turn: next } });
    return null;
  } catch (error) {
    return error.code;
  }
}

const tabs = await Promise.all((outputs.length ? outputs : [null]).map(open));
const watching = await open();
if (!outputs.length) await tabs[0].sendMessage({ text: "#sim words=2 rate=0 tool=look" });
const refused = await Promise.all(outputs.map((output, at) => decideIn(tabs[at], output)));
for (const [at, tab] of tabs.entries()) console.log(JSON.stringify(shown(tab, refused[at])));
if (outputs.length) {
  await watching.resumeStream({ metadata: { turn: decided } });
  console.log(JSON.stringify(shown(watching)));
  await tabs[0].sendMessage({ text: "#sim words=3 rate=0" });
  console.log(JSON.stringify(shown(tabs[0])));
  const late = await open();
  late.messages = [];
  await late.resumeStream({ metadata: { turn: decided } });
  console.log(JSON.stringify(shown(late)));
}
// Of a reader that was cut, nothing must keep Node alive.
process.exit(0);
