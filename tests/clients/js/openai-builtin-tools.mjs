// Built-in tools with OpenAI's SDK: `openai-builtin-tools.mjs KEY URL QUESTION`. Prints the items of the response, and
// after how many of its events the stream was resumed with the same rest.
import OpenAI from "openai";

const [apiKey, url, input] = process.argv.slice(2);
const client = new OpenAI({ apiKey, baseURL: `${url}/v1` });
const server = { type: "mcp", server_label: "simulated", server_url: "https://mcp.example/mcp", require_approval: "never" };
const tools = [{ type: "web_search" }, { type: "code_interpreter", container: { type: "auto" } }, server];
const streaming = client.responses.stream({ model: "claude-haiku-5-5", input, tools });
for await (const _ of streaming);
const { id, output, output_text: text } = await streaming.finalResponse();

async function read(after) {
  const events = [];
  const rest = await client.responses.retrieve(id, { stream: true, ...(after < 0 ? {} : { starting_after: after }) });
  for await (const event of rest) events.push(event);
  return events;
}

const whole = await read(-1);
let resumed = 1;
for (let seen = 0; seen < whole.length - 1; seen++)
  resumed += JSON.stringify(await read(seen)) === JSON.stringify(whole.slice(seen + 1));
console.log(JSON.stringify({ types: output.map((item) => item.type), text, events: whole.length, resumed }));
