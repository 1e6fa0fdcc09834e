// A tool that needs approval, in two processes: `approvals.mjs SDK KEY URL SESSION FILE`. The first one asks the model and writes
// its state into FILE; the second one reads FILE, approves the call and goes on. Prints one line.
import { existsSync, readFileSync, writeFileSync } from "node:fs";

const [sdk, apiKey, url, session, file] = process.argv.slice(2);
const ASKED = '#sim words=2 rate=0 tool=look json={"query":"the sky"}';
const baseURL = `${url}/v1`;
const headers = { "x-session-id": session };
const saved = existsSync(file) ? readFileSync(file, "utf8") : null;
const ran = [];
const execute = ({ query }) => (ran.push(query), "Stars.");
const { z } = await import("zod");
const parameters = z.object({ query: z.string() });

const STEPS = {
  async agents() {
    const { Agent, OpenAIProvider, RunState, Runner, tool } = await import("@openai/agents");
    const { default: OpenAI } = await import("openai");
    const openAIClient = new OpenAI({ apiKey, baseURL, defaultHeaders: headers });
    const runner = new Runner({ modelProvider: new OpenAIProvider({ openAIClient, useResponses: true }), tracingDisabled: true });
    const look = tool({ name: "look", description: "Looks.", parameters, needsApproval: true, execute });
    const agent = new Agent({ name: "Reader", instructions: "Be brief.", model: "claude-haiku-5-5", tools: [look] });
    if (saved === null) {
      const { interruptions, state } = await runner.run(agent, ASKED);
      writeFileSync(file, state.toString());
      return { waits: interruptions.map(({ rawItem }) => rawItem.name) };
    }
    const state = await RunState.fromString(agent, saved);
    for (const one of state.getInterruptions()) state.approve(one);
    return { text: (await runner.run(agent, state)).finalOutput };
  },
};

console.log(JSON.stringify({ ...(await STEPS[sdk]()), ran }));
