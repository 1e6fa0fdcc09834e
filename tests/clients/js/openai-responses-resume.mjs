// Reads one response with OpenAI's SDK, and resumes it after each cut: `openai-responses-resume.mjs KEY URL ask QUESTION`, or `… look ID`.
import { randomUUID } from "node:crypto";
import OpenAI from "openai";

const [key, url, how, what] = process.argv.slice(2);
// The SDK repeats a request while the gateway restarts.
const client = new OpenAI({ apiKey: key, baseURL: `${url}/v1`, maxRetries: 8 });
const isDelta = (event) => event.type === "response.output_text.delta";
const text = (events) => events.filter(isDelta).map((event) => event.delta).join("");
const numbered = (events) => events.every((event, n) => event.sequence_number === events[0].sequence_number + n);

async function into(events, stream) {
  for await (const event of stream) events.push(event);
}

/** Resumes after the last received event. */
async function ask() {
  const asked = { model: "claude-haiku-5-5", stream: true, input: what };
  const headers = { "Idempotency-Key": randomUUID() };
  const got = [];
  let breaks = 0;
  while (got.at(-1)?.type !== "response.completed") {
    try {
      const id = got[0]?.response.id;
      const stream = id
        ? await client.responses.retrieve(id, { stream: true, starting_after: got.at(-1).sequence_number })
        : await client.responses.create(asked, { headers });
      await into(got, stream);
    } catch (error) {
      if (++breaks > 20) throw error;
    }
  }
  return { id: got[0].response.id, text: text(got), isNumbered: numbered(got) && got[0].sequence_number === 0, breaks };
}

/** Retrieves it, streams it with the SDK's accumulator, and resumes it after seven events. */
async function look() {
  const whole = await client.responses.retrieve(what);
  const accumulating = client.responses.stream({ response_id: what });
  const shown = [];
  await into(shown, accumulating);
  const final = await accumulating.finalResponse();
  const rest = [];
  await into(rest, await client.responses.retrieve(what, { stream: true, starting_after: 6 }));
  return {
    texts: [whole.output_text, text(shown), final.output_text],
    items: [whole, final, rest.at(-1).response].map((response) => response.output.map((item) => item.id)),
    status: whole.status,
    rest: { first: rest[0].sequence_number, isNumbered: numbered(rest), text: text(rest), end: rest.at(-1).type },
  };
}

console.log(JSON.stringify(await { ask, look }[how]()));
