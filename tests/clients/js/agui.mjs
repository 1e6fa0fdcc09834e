// Stock clients of AG-UI: HttpAgent 1.0.0 and 0.0.59, TanStack AI's ChatClient, and the agent behind <CopilotChat>.
// Arguments: the key, then for each case the URL of a gateway and the case. Prints a JSON line for each case.
import { createRequire } from "node:module";
import * as agui from "@ag-ui/client";
import { EventSchemas as EventSchema } from "@ag-ui/core/schemas";
import { ProxiedCopilotRuntimeAgent } from "@copilotkit/core";
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";
import * as aguiV0 from "agui-v0";

const require = createRequire(import.meta.url);
const { EventSchemas } = createRequire(require.resolve("agui-v0"))("@ag-ui/core");
const VERSIONS = { "1.0.0": [agui.HttpAgent, EventSchema], "0.0.59": [aguiV0.HttpAgent, EventSchemas] };
const [key, ...rest] = process.argv.slice(2);
const headers = { authorization: `Bearer ${key}` };
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));


const warnings = [];
console.warn = (...texts) => warnings.push(texts.map(String).join(" "));
console.error = () => {};

// The bodies of all streams, as they came.
const bodies = [];
const plainFetch = globalThis.fetch;
globalThis.fetch = async (...request) => {
  const response = await plainFetch(...request);
  if ((response.headers.get("content-type") ?? "").startsWith("text/event-stream")) {
    bodies.push(response.clone().text().catch(() => ""));
  }
  return response;
};

const eventsOf = (body) => body.split("\n").filter((line) => line.startsWith("data: ")).map((line) => JSON.parse(line.slice(6)));

async function invalid(schema) {
  const found = [];
  for (const event of (await Promise.all(bodies.splice(0))).flatMap(eventsOf)) {
    const parsed = schema.safeParse(event);
    if (!parsed.success) found.push([event, parsed.error.message]);
  }
  return found;
}

async function http(url, { version, runs, thread }) {
  const [HttpAgent, schema] = VERSIONS[version];
  const agent = new HttpAgent({ url: `${url}/api/agui`, headers, threadId: thread });
  const ended = [];
  for (const { text, result, decide, ...parameters } of runs) {
    if (text !== undefined) agent.addMessage({ id: `u${ended.length}`, role: "user", content: text });
    const calls = agent.messages.flatMap((message) => message.toolCalls ?? []);
    if (result !== undefined) agent.addMessage({ id: `t${ended.length}`, role: "tool", toolCallId: calls.at(-1).id, content: result });
    if (decide !== undefined) {
      parameters.resume = agent.pendingInterrupts.map((one) => ({ interruptId: one.id, status: "resolved", payload: decide }));
    }
    const types = [];
    let finished = null, error = null;
    await agent
      .runAgent(parameters, {
        onEvent: ({ event }) => void types.push(event.type),
        onRunFinishedEvent: ({ event }) => void (finished = event),
        onRunErrorEvent: ({ event }) => void (error = event.code),
      })
      .catch((failure) => (error = { status: failure.status, code: failure.payload?.error?.code, message: failure.message }));
    ended.push({ types, finished, error });
  }
  return { messages: agent.messages, ended, warnings: warnings.splice(0), invalid: await invalid(schema) };
}

async function tanstack(url, { thread, text, result }) {
  const errors = [];
  const ran = [];
  const execute = (input) => (ran.push(input), result);
  const tools = result && [{ name: "look", description: "Looks.", inputSchema: { type: "object", properties: {} }, execute }];
  let requests = 0;
  const fetchClient = (...request) => (requests++, plainFetch(...request));
  const connection = fetchServerSentEvents(`${url}/api/agui`, { headers, fetchClient, reconnect: { delayMs: 5, maxAttempts: 20 } });
  const client = new ChatClient({ connection, id: thread, threadId: thread, tools, onError: (error) => errors.push(`${error.name}: ${error.message}`) });
  await client.sendMessage(text);
  const part = (kind) => client.getMessages().at(-1).parts.filter((one) => one.type === kind).map((one) => one.content).join("");
  while (result && !errors.length && (client.getIsLoading() || client.getMessages().at(-1).parts.at(-1).type !== "text")) await wait(10);
  const hydrated = await connection.hydrate(client.threadId ?? thread);
  return { text: part("text"), thinking: part("thinking"), requests, errors, hydrated, ran };
}

async function copilot(url, { thread, text, stopped }) {
  const make = () => {
    const agent = new ProxiedCopilotRuntimeAgent({ runtimeUrl: `${url}/api/copilotkit`, agentId: "default", transport: "auto", headers });
    agent.threadId = thread;
    return agent;
  };
  const shown = (agent) => agent.messages.map((one) => [one.role, one.content]);
  const first = make(), second = make(), third = make();
  first.addMessage({ id: "u1", role: "user", content: text });
  const running = first.runAgent({});
  while (!String(first.messages.at(-1)?.content).includes("w000003")) await wait(10);
  const joining = second.connectAgent();
  while (!String(second.messages.at(-1)?.content).includes("w000003")) await wait(10);
  const isRunning = second.isRunning;
  await Promise.all([running, joining]);
  // A page that shows its error connects again.
  await first.connectAgent();
  const whole = [shown(first), shown(second)];
  first.addMessage({ id: "u2", role: "user", content: stopped });
  const going = first.runAgent({});
  while (!String(first.messages.at(-1)?.content).includes("w000003")) await wait(10);
  const connecting = third.connectAgent();
  while (!String(third.messages.at(-1)?.content).includes("w000003")) await wait(10);
  third.abortRun();
  await Promise.allSettled([going, connecting]);
  return { isRunning, whole, stopped: [shown(first), shown(third)] };
}

const CLIENTS = { http, tanstack, copilot };
while (rest.length) {
  const [url, text] = rest.splice(0, 2);
  const { client, ...given } = JSON.parse(text);
  console.log(JSON.stringify(await CLIENTS[client](url, given)));
}
process.exit(0);
