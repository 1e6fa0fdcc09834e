// OpenAI's Agents SDK: `openai-agents.mjs KEY URL API QUESTION`, API is `chat_completions` or `responses`. One line.
import { Agent, OpenAIProvider, Runner, setTracingDisabled, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";

const [apiKey, url, api, ...questions] = process.argv.slice(2);
setTracingDisabled(true);
const client = new OpenAI({ apiKey, baseURL: `${url}/v1` });
const modelProvider = new OpenAIProvider({ openAIClient: client, useResponses: api === "responses" });
const runner = new Runner({ modelProvider, tracingDisabled: true });
const ran = [];
const look = tool({
  name: "look",
  description: "Looks.",
  parameters: z.object({ query: z.string() }),
  execute: ({ query }) => {
    ran.push(query);
    return "Stars.";
  },
});
const agent = new Agent({ name: "Reader", instructions: "Be brief.", model: "claude-haiku-5-5", tools: [look] });

let history = [];
const texts = [];
let text = "";
try {
  for (const content of questions) {
    text = "";
    const result = await runner.run(agent, [...history, { role: "user", content }], { stream: true });
    for await (const delta of result.toTextStream()) text += delta;
    await result.completed;
    texts.push([text, result.finalOutput]);
    history = result.history;
  }
  console.log(JSON.stringify({ texts, ran }));
} catch (error) {
  console.log(JSON.stringify({ texts, ran, text, error: error.constructor.name }));
}
