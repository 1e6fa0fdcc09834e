// OpenRouter's provider for the AI SDK, with its own options: `openrouter.mjs KEY URL`. Prints a line for each request.
import { createOpenRouter } from "@openrouter/ai-sdk-provider";
import { stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [apiKey, url] = process.argv.slice(2);
const ignored = [];
const fetch = async (...request) => {
  const response = await globalThis.fetch(...request);
  ignored.push(response.headers.get("tailrace-ignored"));
  return response;
};
const router = createOpenRouter({ baseURL: `${url}/v1`, apiKey, fetch });

async function ask(settings, more = {}) {
  const errors = [];
  const model = router("claude-sonnet-5-5", settings);
  const asked = streamText({ model, prompt: "#sim words=5 thinking=2 rate=0", maxRetries: 0, onError: ({ error }) => errors.push(error.message), ...more });
  const text = await asked.text.catch(() => "");
  const { outputTokens } = await asked.totalUsage.catch(() => ({}));
  console.log(JSON.stringify({ text, outputTokens, errors, ignored: ignored.splice(0) }));
}

await ask({});
await ask({ usage: { include: true } });
await ask({ usage: { include: true }, reasoning: { effort: "high" } });
const routing = { models: ["claude-opus-5-5"], provider: { order: ["anthropic"], allow_fallbacks: false }, includeReasoning: true };
const samplers = { min_p: 0.1, top_a: 0.2, repetition_penalty: 1.1, transforms: [], echo: false };
await ask({ usage: { include: true }, reasoning: { effort: "high", exclude: true }, ...routing, extraBody: samplers }, { topK: 40 });
const look = tool({ description: "Looks.", inputSchema: z.object({ query: z.string() }), execute: ({ query }) => `Saw ${query}.` });
const prompt = '#sim words=2 rate=0 tool=look json={"query":"stars"}';
await ask({ usage: { include: true } }, { prompt, tools: { look }, stopWhen: stepCountIs(3) });
