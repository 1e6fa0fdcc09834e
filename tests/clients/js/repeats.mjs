// Clients with their default settings: `repeats.mjs CLIENT URL KEY QUESTION`. Prints the text and the error that each shows.
import { createAnthropic } from "@ai-sdk/anthropic";
import Anthropic from "@anthropic-ai/sdk";
import { generateText, streamText } from "ai";
import OpenAI from "openai";
import { POST_CLIENTS } from "./post-clients.mjs";

const [client, url, key, content] = process.argv.slice(2);
const model = "claude-haiku-5-5";
const messages = [{ role: "user", content }];
const seen = { text: "", error: null };
const openai = () => new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const provider = (headers) => createAnthropic({ baseURL: `${url}/v1`, apiKey: key, headers })(model);

async function post(client, path, body, dialect) {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
  const { text, outcome } = await POST_CLIENTS[client](url + path, headers, JSON.stringify(body), dialect);
  seen.text = text;
  if (outcome !== "completed") seen.error = outcome;
}

async function generate(headers) {
  seen.text = (await generateText({ model: provider(headers), messages })).text;
}

const CLIENTS = {
  async anthropic() {
    const stream = new Anthropic({ baseURL: url, apiKey: key }).messages.stream({ model, max_tokens: 500, messages });
    await stream.on("text", (delta) => (seen.text += delta)).finalMessage();
  },
  async chat() {
    for await (const chunk of await openai().chat.completions.create({ model, messages, stream: true })) {
      seen.text += chunk.choices[0]?.delta?.content ?? "";
    }
  },
  async responses() {
    for await (const event of await openai().responses.create({ model, input: content, stream: true })) {
      if (event.type === "response.output_text.delta") seen.text += event.delta;
      if (["response.incomplete", "response.failed", "error"].includes(event.type)) seen.error = event.type;
    }
  },
  generateText: () => generate({}),
  generateTextAuto: () => generate({ "Idempotency-Key": "auto" }),
  async streamText() {
    const result = streamText({ model: provider({}), messages, onError: ({ error }) => (seen.error = error.name ?? "Error") });
    for await (const text of result.textStream) seen.text += text;
  },
  fetchEventSource() {
    // It is made for pages. Node has all that it uses of a page but these names, with which OpenAI's SDK does not start.
    globalThis.window = globalThis;
    globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
    return post("fetch-event-source", "/v1/turns", { message: content }, "tailrace");
  },
  tailrace: () => post("tailrace.js", "/v1/turns", { message: content }, "tailrace"),
};

try {
  await CLIENTS[client]();
} catch (error) {
  seen.error = `${error.constructor.name}: ${error.message}`;
}
console.log(JSON.stringify(seen));
process.exit(0);
