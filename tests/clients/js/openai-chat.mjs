// Chat completions with OpenAI's SDK: `openai-chat.mjs KEY URL`. Prints one line for each kind of request.
import OpenAI from "openai";

const [key, url] = process.argv.slice(2);
const model = "claude-haiku-5-5";
const client = new OpenAI({ apiKey: key, baseURL: `${url}/v1` });
const asked = (content) => [{ role: "user", content }];
const print = (line) => console.log(JSON.stringify(line));
const text = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");

async function into(chunks, stream) {
  for await (const chunk of stream) chunks.push(chunk);
}

const whole = await client.chat.completions.create({ model, messages: asked("#sim words=5 rate=0") });
print({ id: whole.id, text: whole.choices[0].message.content, usage: whole.usage.completion_tokens });

const counted = [];
const stream_options = { include_usage: true };
await into(counted, await client.chat.completions.create({ model, stream: true, stream_options, messages: asked("#sim words=5 rate=0") }));
print({ id: counted[0].id, text: text(counted), usage: counted.at(-1).usage.completion_tokens });

// The SDK runs the tool, sends its result, and asks again.
const ran = [];
const look = ({ query }) => {
  ran.push(query);
  return "Stars.";
};
const parameters = { type: "object", properties: { query: { type: "string" } } };
const runner = client.chat.completions.runTools({
  model,
  stream: true,
  messages: asked('#sim words=2 rate=0 tool=look json={"query":"the sky"}'),
  tools: [{ type: "function", function: { name: "look", function: look, parse: JSON.parse, parameters } }],
});
print({ text: await runner.finalContent(), ran, roles: runner.messages.map((message) => message.role) });

try {
  await client.chat.completions.create({ model, stream: true, messages: asked("#sim fault=529@0") });
} catch (error) {
  print({ error: error.constructor.name, status: error.status, code: error.code });
}

const half = [];
try {
  const failing = { model, stream: true, on_interrupt: "fail", messages: asked("#sim words=9 rate=0 fault=error@5") };
  await into(half, await client.chat.completions.create(failing));
} catch (error) {
  print({ error: error.constructor.name, code: error.code, text: text(half) });
}
