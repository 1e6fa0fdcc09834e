// Reads one response with OpenAI's SDK, and resumes it after each cut: `openai-responses-resume.mjs KEY URL QUESTION`.
import { randomUUID } from "node:crypto";
import OpenAI from "openai";

const [key, url, input] = process.argv.slice(2);
const client = new OpenAI({ apiKey: key, baseURL: `${url}/v1` });
const request = { model: "claude-haiku-5-5", stream: true, input };
const headers = { "Idempotency-Key": randomUUID() };
const events = [];
let breaks = 0;
while (events.at(-1)?.type !== "response.completed") {
  try {
    const id = events[0]?.response.id;
    const stream = id
      ? await client.responses.retrieve(id, { stream: true, starting_after: events.at(-1).sequence_number })
      : await client.responses.create(request, { headers });
    for await (const event of stream) events.push(event);
  } catch (error) {
    if (++breaks > 20) throw error;
  }
}
const text = events.map((event) => (event.type === "response.output_text.delta" ? event.delta : "")).join("");
const isNumbered = events.every((event, n) => event.sequence_number === n);
console.log(JSON.stringify({ id: events[0].response.id, text, isNumbered }));
