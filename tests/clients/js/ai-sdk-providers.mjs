// AI SDK's `streamText` with each provider and `resumableFetch`: `ai-sdk-providers.mjs URLS KEY GATEWAYS RUNS QUESTION`, as
// `resuming.mjs`. The model calls a tool first.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenResponses } from "@ai-sdk/open-responses";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { createOpenRouter } from "@openrouter/ai-sdk-provider";
import { stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { resumableFetch } from "../../../web/fetch.js";

const [urls, apiKey, gateways, runs, question] = process.argv.slice(2);
const fetch = gateways === "plain" ? globalThis.fetch : resumableFetch({ gateways: gateways === "-" ? [] : gateways.split(",") });
const PROVIDERS = {
  "@ai-sdk/anthropic": (options) => createAnthropic(options),
  "@ai-sdk/openai, chat": (options) => createOpenAI(options).chat,
  "@ai-sdk/openai, responses": (options) => createOpenAI(options).responses,
  "@ai-sdk/openai-compatible": (options) => createOpenAICompatible({ name: "tailrace", ...options }),
  "@ai-sdk/open-responses": (options) => createOpenResponses({ name: "tailrace", ...options, url: `${options.baseURL}/responses` }),
  "@openrouter/ai-sdk-provider": (options) => createOpenRouter(options),
};

async function ask(kind, url) {
  const [calls, errors] = [[], []];
  const model = PROVIDERS[kind]({ baseURL: `${url}/v1`, apiKey, fetch })("claude-haiku-5-5");
  const execute = ({ query }) => (calls.push(query), "Stars.");
  const look = tool({ description: "Looks.", inputSchema: z.object({ query: z.string() }), execute });
  const prompt = `${question} tool=look json={"query":"the sky"}`;
  const onError = ({ error }) => errors.push(error);
  const asked = streamText({ model, prompt, tools: { look }, stopWhen: stepCountIs(3), maxRetries: 0, onError });
  await asked.consumeStream();
  if (errors.length) throw errors[0];
  return { text: await asked.text, calls };
}

async function runAll(kind) {
  for (const url of urls.split(","))
    for (let n = 0; n < Number(runs); n++) {
      const outcome = await ask(kind, url).catch((error) => ({ error: error.constructor.name, message: error.message }));
      console.log(JSON.stringify({ kind, ...outcome }));
    }
}

// In AI SDK 6 and 7, a cut is an unhandled rejection, too.
process.on("unhandledRejection", () => {});
await Promise.all(Object.keys(PROVIDERS).map(runAll));
