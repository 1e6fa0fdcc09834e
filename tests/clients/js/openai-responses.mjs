// Responses with OpenAI's SDK: `openai-responses.mjs KEY URL CUTTING-URL`. Prints one line for each kind of request.
import OpenAI from "openai";

const [key, url, cutting] = process.argv.slice(2);
const model = "claude-haiku-5-5";
const [client, cutOnce] = [url, cutting].map(
  (origin) => new OpenAI({ apiKey: key, baseURL: `${origin}/v1` }),
);
const print = (line) => console.log(JSON.stringify(line));
const isDelta = (event) => event.type === "response.output_text.delta";
const text = (events) => events.filter(isDelta).map((event) => event.delta).join("");
const numbered = (events) => events.every((event, n) => event.sequence_number === n);

async function into(events, stream) {
  for await (const event of stream) events.push(event);
}

const whole = await client.responses.create({ model, input: "#sim words=5 rate=0" });
print({ id: whole.id, text: whole.output_text, usage: whole.usage.output_tokens });

const streamed = [];
await into(streamed, await client.responses.create({ model, stream: true, input: "#sim words=5 rate=0" }));
print({ id: streamed[0].response.id, text: text(streamed), end: streamed.at(-1).type });

const tool = { type: "function", name: "look", strict: false, parameters: { type: "object", properties: { query: { type: "string" } } } };
const asking = { model, input: '#sim words=2 rate=0 thinking=2 tool=look json={"query":"the sky"}', tools: [tool] };
const calling = client.responses.stream(asking);
const kinds = new Set();
for await (const event of calling) kinds.add(event.type);
const called = await calling.finalResponse();
const call = called.output.at(-1);
const output = [{ type: "function_call_output", call_id: call.call_id, output: "Stars." }];
const after = await client.responses.create({ model, input: output, tools: [tool], previous_response_id: called.id });
print({
  items: called.output.map((item) => item.type),
  arguments: call.arguments,
  isStreamed: kinds.has("response.function_call_arguments.delta") && kinds.has("response.reasoning_summary_text.delta"),
  text: after.output_text,
});

try {
  await client.responses.create({ model, stream: true, input: "#sim fault=529@0" });
} catch (error) {
  print({ error: error.constructor.name, status: error.status, code: error.code });
}

// The SDK's accumulator is cut, and resumes after the last event that it has shown.
const shown = [];
try {
  await into(shown, cutOnce.responses.stream({ model, input: "#sim words=120 rate=250" }));
} catch (error) {
  print({ cut: error.constructor.name });
}
const id = shown[0].response.id;
const rest = client.responses.stream({ response_id: id, starting_after: shown.at(-1).sequence_number });
await into(shown, rest);
print({ id, text: text(shown), isNumbered: numbered(shown), final: (await rest.finalResponse()).output_text });

const background = await client.responses.create({ model, background: true, input: "#sim words=900 rate=50" });
const cancelled = await client.responses.cancel(background.id);
const ended = [];
await into(ended, await client.responses.retrieve(background.id, { stream: true }));
print({ status: cancelled.status, end: ended.at(-1).type, status_of_end: ended.at(-1).response.status });
