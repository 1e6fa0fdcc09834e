// Stock clients of AG-UI that ask again and again, each in a new thread: `agui-runs.mjs URL SEED JSON`, where JSON has
// [client, question, forwardedProps] of each: HttpAgent's version, or `tanstack`, whose connections break now and then.
// Prints a line when a run has its turn, and one at its end. Closing stdin ends it after the runs under way.
import * as agui from "@ag-ui/client";
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";
import * as aguiV0 from "agui-v0";

const [url, seed, given] = process.argv.slice(2);
const AGENTS = { "1.0.0": agui.HttpAgent, "0.0.59": aguiV0.HttpAgent };
// The first event, whose id a client needs, is shorter.
const CUT_BYTES_MIN = 400;
const CUT_BYTES_MAX = 6000;
const say = (line) => console.log(JSON.stringify(line));

console.warn = () => {};
console.error = () => {};
let isOver = false;
process.stdin.on("end", () => (isOver = true)).resume();

/** Numbers from 0 to 1 (mulberry32). */
function random(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

// The connections of each thread.
const recorded = new Map();
const plainFetch = globalThis.fetch;

/** Records the bytes that the client receives, at most `bytesMax`: then the connection breaks. */
async function recordingFetch(address, init, bytesMax = Infinity) {
  const body = JSON.parse(init.body);
  const run = recorded.get(body.threadId);
  const connection = { cursor: new Headers(init.headers).get("last-event-id"), received: "" };
  run.messages = body.messages;
  run.connections.push(connection);
  const response = await plainFetch(address, init);
  if (!run.turn) say({ turn: (run.turn = response.headers.get("tailrace-turn")) });
  const decoder = new TextDecoder();
  let left = bytesMax;
  const record = new TransformStream({
    transform(bytes, controller) {
      const part = bytes.subarray(0, left);
      left -= part.length;
      connection.received += decoder.decode(part, { stream: true });
      controller.enqueue(part);
      if (left <= 0) controller.error(new TypeError("cut"));
    },
  });
  return new Response(response.body.pipeThrough(record), response);
}
globalThis.fetch = recordingFetch;

async function ask(client, thread, question, forwardedProps, chance) {
  let error = null;
  if (client !== "tanstack") {
    const agent = new AGENTS[client]({ url: `${url}/api/agui`, threadId: thread });
    agent.addMessage({ id: "u", role: "user", content: question });
    const onRunErrorEvent = ({ event }) => void (error = event.message);
    await agent.runAgent({ forwardedProps }, { onRunErrorEvent }).catch((failure) => (error = String(failure)));
    return [agent.messages.filter(({ role }) => role === "assistant").map(({ content }) => content ?? "").join(""), error];
  }
  const fetchClient = (address, init) => recordingFetch(address, init, CUT_BYTES_MIN + Math.floor(chance() * (CUT_BYTES_MAX - CUT_BYTES_MIN)));
  const connection = fetchServerSentEvents(`${url}/api/agui`, { fetchClient, reconnect: { delayMs: 5, maxAttempts: 50 } });
  const chat = new ChatClient({ connection, id: thread, threadId: thread, forwardedProps, onError: (failure) => (error = String(failure)) });
  await chat.sendMessage(question);
  const parts = chat.getMessages().flatMap(({ role, parts }) => (role === "assistant" ? parts : []));
  return [parts.flatMap(({ type, content }) => (type === "text" ? [content] : [])).join(""), error];
}

async function askOnAndOn([client, question, forwardedProps], number) {
  const chance = random(Number(seed) * 1000 + number);
  for (let count = 0; !isOver; count++) {
    const thread = `${client}-${number}-${count}`;
    const run = { turn: null, messages: [], connections: [] };
    recorded.set(thread, run);
    const [text, error] = await ask(client, thread, question, forwardedProps, chance);
    recorded.delete(thread);
    say({ client, ...run, text, error });
  }
}

await Promise.all(JSON.parse(given).map(askOnAndOn));
process.exit(0);
