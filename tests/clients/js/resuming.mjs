// Both SDKs with `resumableFetch`: `resuming.mjs URLS KEY GATEWAYS RUNS QUESTION KINDS`, with commas. Prints a line for each of RUNS
// runs of each kind at each URL. The kinds run at the same time. GATEWAYS: those of the `fetch`; `-` for none, and `plain` for the
// `fetch` of Node.
import Anthropic from "@anthropic-ai/sdk";
import { betaTool } from "@anthropic-ai/sdk/helpers/beta/json-schema";
import OpenAI from "openai";
import { resumableFetch } from "../../../web/fetch.js";

const [urls, apiKey, gateways, runs, question, kinds] = process.argv.slice(2);
const model = "claude-haiku-5-5";
const withTool = `${question} tool=look json={"query":"the sky"}`;
const asked = (content) => ({ model, max_tokens: 500, messages: [{ role: "user", content }] });
const newFetch = () => (gateways === "plain" ? fetch : resumableFetch({ gateways: gateways === "-" ? [] : gateways.split(",") }));

const KINDS = {
  async "messages.stream"(url) {
    const stream = new Anthropic({ baseURL: url, apiKey, fetch: newFetch() }).messages.stream(asked(question));
    return { text: await stream.finalText(), calls: [] };
  },
  async toolRunner(url) {
    const calls = [];
    const run = ({ query }) => (calls.push(query), "Stars.");
    const inputSchema = { type: "object", properties: { query: { type: "string" } }, required: ["query"] };
    const tools = [betaTool({ name: "look", description: "Looks.", inputSchema, run })];
    const client = new Anthropic({ baseURL: url, apiKey, fetch: newFetch() });
    let text = "";
    for await (const stream of client.beta.messages.toolRunner({ ...asked(withTool), tools, stream: true })) {
      text = "";
      for await (const event of stream) if (event.delta?.type === "text_delta") text += event.delta.text;
    }
    return { text, calls };
  },
  async "chat completions"(url) {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, fetch: newFetch() });
    let [text, ends, usage] = ["", 0, 0];
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ ...asked(question), ...options })) {
      text += chunk.choices[0]?.delta.content ?? "";
      ends += chunk.choices[0]?.finish_reason ? 1 : 0;
      usage += chunk.usage ? 1 : 0;
    }
    if (ends !== 1 || usage !== 1) throw new Error(`${ends} ends, ${usage} usages`);
    return { text, calls: [] };
  },
  async responses(url) {
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, fetch: newFetch() });
    const stream = client.responses.stream({ model, input: question });
    return { text: (await stream.finalResponse()).output_text, calls: [] };
  },
};

async function runAll(kind) {
  for (const url of urls.split(","))
    for (let n = 0; n < Number(runs); n++) {
      const outcome = await KINDS[kind](url).catch((error) => ({ error: error.constructor.name, message: error.message }));
      console.log(JSON.stringify({ kind, ...outcome }));
    }
}

await Promise.all((kinds ?? Object.keys(KINDS).join(",")).split(",").map(runAll));
