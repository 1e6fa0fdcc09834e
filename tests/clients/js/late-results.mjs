// A server tool that the model calls beside a tool of the page, whose result begins the next answer:
// `late-results.mjs URL KEY CASE SECOND`, where CASE is the address of the simulated Claude's case that answers, and SECOND its
// events for the second request. Prints for each client the results of its calls by tool, and what it has reported.
import { HttpAgent } from "@ag-ui/client";
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client";
import { HttpAgent as HttpAgentV0 } from "agui-v0";
import { load } from "./ai-sdk.mjs";

const [url, key, address, first, second] = process.argv.slice(2);
const headers = { authorization: `Bearer ${key}` };
const text = `#sim case=${address.split("/").at(-1)}`;
const model = "claude-sonnet-5-5";
const tools = [{ name: "look", input_schema: { type: "object" } }, { type: "web_search_20250305", name: "web_search" }];
const play = (body) => fetch(address, { method: "POST", body });
const reported = [];
console.warn = console.error = (...values) => reported.push(values.map(String).join(" "));

async function useChat(version) {
  const { TailraceChatTransport, Chat } = await load(version);
  const transport = new TailraceChatTransport({ api: `${url}/api/chat`, headers, body: { model, tools } });
  const chat = new Chat({ id: `late-${version}`, transport, onError: (error) => reported.push(error.message) });
  await chat.sendMessage({ text });
  await play(second);
  const { toolCallId } = chat.messages.at(-1).parts.find(({ type }) => type === "tool-look");
  await chat.addToolOutput({ tool: "look", toolCallId, output: "blue" });
  await chat.sendMessage();
  return chat.messages.at(-1).parts.filter((part) => part.toolCallId).map(({ type, output }) => [type.replace("tool-", ""), output]);
}

async function httpAgent(Agent) {
  const agent = new Agent({ url: `${url}/api/agui`, threadId: `late-${Agent === HttpAgent}`, headers });
  agent.addMessage({ id: "u", role: "user", content: text });
  await agent.runAgent({ forwardedProps: { model, tools } });
  await play(second);
  const calls = agent.messages.flatMap(({ toolCalls }) => toolCalls ?? []);
  agent.addMessage({ id: "t", role: "tool", toolCallId: calls.find((call) => call.function.name === "look").id, content: "blue" });
  await agent.runAgent({ forwardedProps: { model, tools } });
  const resultOf = (call) => agent.messages.filter((one) => one.role === "tool" && one.toolCallId === call.id).map(({ content }) => content);
  return calls.map((call) => [call.function.name, ...resultOf(call)]);
}

async function tanstack() {
  const connection = fetchServerSentEvents(`${url}/api/agui`, { headers });
  const onError = (error) => reported.push(error.message);
  const client = new ChatClient({ connection, id: "late", threadId: "late", forwardedProps: { model, tools }, onError });
  await client.sendMessage(text);
  await play(second);
  const parts = () => client.getMessages().flatMap(({ parts }) => parts);
  const { id } = parts().find(({ type, name }) => type === "tool-call" && name === "look");
  await client.addToolResult({ toolCallId: id, tool: "look", output: "blue" });
  return parts().flatMap(({ type, name, output }) => (type === "tool-call" ? [[name, output]] : []));
}

const clients = { 5: useChat, 6: useChat, 7: useChat, "0.0.59": () => httpAgent(HttpAgentV0), "1.0.0": () => httpAgent(HttpAgent), tanstack };
for (const [client, run] of Object.entries(clients)) {
  await play(first);
  const results = await run(client);
  console.log(JSON.stringify({ client, results, reported: reported.splice(0) }));
}
process.exit(0);
