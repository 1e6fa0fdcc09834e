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

  /** A page with `useChat`, and the route of its app with `streamText`. The messages are stored by the app, and two tabs approve at once. */
  async "ai-sdk"() {
    const { createAnthropic } = await import("@ai-sdk/anthropic");
    const { Chat } = await import("@ai-sdk/react");
    const { convertToModelMessages, DefaultChatTransport, isStepCount, lastAssistantMessageIsCompleteWithApprovalResponses, streamText, tool } = await import("ai");
    const claude = createAnthropic({ apiKey, baseURL, headers: { ...headers, "Idempotency-Key": "auto" } })("claude-haiku-5-5");
    const tools = { look: tool({ description: "Looks.", inputSchema: parameters, execute }) };
    async function route(_address, { body }) {
      const { messages } = JSON.parse(body);
      const asked = await convertToModelMessages(messages);
      const answer = streamText({ model: claude, messages: asked, tools, toolApproval: { look: "user-approval" }, stopWhen: isStepCount(3) });
      return answer.toUIMessageStreamResponse({ originalMessages: messages });
    }
    const open = (messages) =>
      new Chat({ messages, transport: new DefaultChatTransport({ fetch: route }), sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithApprovalResponses });
    const pending = ({ messages }) => messages.flatMap(({ parts }) => parts).filter(({ state }) => state === "approval-requested");
    if (saved === null) {
      const chat = open([]);
      await chat.sendMessage({ text: ASKED });
      writeFileSync(file, JSON.stringify(chat.messages));
      return { waits: pending(chat).map(({ type }) => type.replace("tool-", "")) };
    }
    const tabs = [JSON.parse(saved), JSON.parse(saved)].map(open);
    for (const tab of tabs) for (const { approval } of pending(tab)) tab.addToolApprovalResponse({ id: approval.id, approved: true });
    while (tabs.some((tab) => tab.status !== "ready" || tab.messages.at(-1).parts.at(-1).type !== "text")) await new Promise((resolve) => setTimeout(resolve, 20));
    return { text: [...new Set(tabs.map((tab) => tab.messages.at(-1).parts.at(-1).text))].join() };
  },
};

console.log(JSON.stringify({ ...(await STEPS[sdk]()), ran }));
