// OpenAI's Agents SDK over both protocols: `openai-agents.mjs KEY URL CUTTING-URL`. Prints one line for each run: a
// conversation with a tool over each, and then an answer over each whose connection is cut.
import { Agent, OpenAIProvider, Runner, setTracingDisabled, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";

const [apiKey, url, cutting] = process.argv.slice(2);
const LOOKING = '#sim words=2 rate=0 tool=look json={"query":"the sky"}';
const ASKED = "#sim words=40 rate=200";
setTracingDisabled(true);

async function run(origin, useResponses, questions) {
  const openAIClient = new OpenAI({ apiKey, baseURL: `${origin}/v1` });
  const runner = new Runner({ modelProvider: new OpenAIProvider({ openAIClient, useResponses }), tracingDisabled: true });
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
  let [history, text] = [[], ""];
  const texts = [];
  try {
    for (const content of questions) {
      text = "";
      const result = await runner.run(agent, [...history, { role: "user", content }], { stream: true });
      for await (const delta of result.toTextStream()) text += delta;
      await result.completed;
      texts.push([text, result.finalOutput]);
      history = result.history;
    }
    return { texts, ran };
  } catch (error) {
    return { text, error: error.constructor.name };
  }
}

for (const [origin, questions] of [[url, [LOOKING, ASKED]], [cutting, [ASKED]]])
  for (const useResponses of [false, true]) console.log(JSON.stringify(await run(origin, useResponses, questions)));
