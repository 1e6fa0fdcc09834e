// Built-in tools of a client that goes on after each fault: `hosted-tools.mjs KEY sdk|agents`. For each line of stdin,
// `{"url": …, "question": …}`, prints the id, the items and the text of the response; a message is its text.
import { createInterface } from "node:readline";
import { Agent, OpenAIProvider, Runner, codeInterpreterTool, hostedMcpTool, setTracingDisabled, webSearchTool } from "@openai/agents";
import OpenAI from "openai";

const [apiKey, kind] = process.argv.slice(2);
const TRIES_MAX = 20;
const model = "claude-haiku-5-5";
const mcp = { server_label: "simulated", server_url: "https://mcp.example/mcp", require_approval: "never" };
const tools = [{ type: "web_search" }, { type: "code_interpreter", container: { type: "auto" } }, { type: "mcp", ...mcp }];
const hosted = [webSearchTool(), codeInterpreterTool(), hostedMcpTool({ serverLabel: mcp.server_label, serverUrl: mcp.server_url })];
const describe = (id, items) => ({ id, items, text: items.filter((one) => typeof one === "string").join("") });
const readable = (item) => (item.type === "message" ? item.content.map((part) => part.text).join("") : item);
setTracingDisabled(true);

function connect(url) {
  return new OpenAI({ apiKey, baseURL: `${url}/v1`, defaultHeaders: { "Idempotency-Key": "auto" } });
}

// The stream goes on after its last event, as its items.
async function sdk(url, input) {
  const client = connect(url);
  const items = [];
  let id, seen = -1;
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    try {
      const after = seen < 0 ? {} : { starting_after: seen };
      const stream = id
        ? await client.responses.retrieve(id, { stream: true, ...after })
        : await client.responses.create({ model, input, tools, stream: true });
      for await (const event of stream) {
        seen = event.sequence_number;
        id ??= event.response?.id;
        if (event.type === "response.output_item.done") items.push(event.item);
        if (event.type !== "response.completed") continue;
        if (JSON.stringify(event.response.output) !== JSON.stringify(items)) return null;
        return describe(id, items.map(readable));
      }
    } catch (error) {
      if (!(error instanceof OpenAI.APIConnectionError || error.message === "terminated")) console.error(error);
    }
  }
}

// The SDK cannot resume a stream, so the run is repeated: its request has the same key.
async function agents(url, content) {
  const runner = new Runner({ modelProvider: new OpenAIProvider({ openAIClient: connect(url), useResponses: true }) });
  const agent = new Agent({ name: "Reader", model, tools: hosted });
  for (let tries = 0; tries < TRIES_MAX; tries++) {
    try {
      const result = await runner.run(agent, [{ role: "user", content }], { stream: true });
      await result.completed;
      return describe(result.lastResponseId, result.newItems.map((item) => readable(item.rawItem)));
    } catch {}
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  const { url, question } = JSON.parse(line);
  console.log(JSON.stringify((await { sdk, agents }[kind](url, question)) ?? null));
}
