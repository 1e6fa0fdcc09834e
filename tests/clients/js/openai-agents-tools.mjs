// Hosted tools of OpenAI's Agents SDK: `openai-agents-tools.mjs KEY URL QUESTION…`. Prints the output of each question,
// and the calls of built-in tools.
import { Agent, OpenAIProvider, Runner, codeInterpreterTool, hostedMcpTool, setTracingDisabled, webSearchTool } from "@openai/agents";
import OpenAI from "openai";

const [apiKey, url, ...questions] = process.argv.slice(2);
setTracingDisabled(true);
const openAIClient = new OpenAI({ apiKey, baseURL: `${url}/v1` });
const runner = new Runner({ modelProvider: new OpenAIProvider({ openAIClient, useResponses: true }), tracingDisabled: true });
const tools = [
  webSearchTool(),
  codeInterpreterTool(),
  hostedMcpTool({ serverLabel: "simulated", serverUrl: "https://mcp.example/mcp" }),
];
const agent = new Agent({ name: "Reader", model: "claude-haiku-5-5", tools });
for (const content of questions) {
  const result = await runner.run(agent, [{ role: "user", content }], { stream: true });
  await result.completed;
  const calls = result.newItems.filter((item) => item.rawItem.type === "hosted_tool_call").map((item) => item.rawItem.name);
  // The conversation goes on with all items of the first answer.
  await runner.run(agent, [...result.history, { role: "user", content: "#sim words=1 rate=0" }]);
  console.log(JSON.stringify({ output: result.finalOutput, calls }));
}
