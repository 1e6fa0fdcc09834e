// Anthropic's SDK: `anthropic.mjs URL KEY HOW QUESTION [HOW QUESTION ...]`, all at once. HOW is `stream`, `whole` or `raw`.
// Prints one line for each: the message, or the error.
import Anthropic, { APIError } from "@anthropic-ai/sdk";

const [baseURL, apiKey, ...rest] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey });

const HOW = {
  async stream(asked, seen) {
    const stream = client.messages.stream(asked).on("text", (delta) => (seen.text += delta));
    stream.on("streamEvent", (event) => (seen.id ??= event.message?.id));
    return { message: await stream.finalMessage() };
  },
  whole: async (asked) => ({ message: await client.messages.create(asked) }),
  /** Adds up the events without a helper. */
  async raw(asked, seen) {
    const kinds = {};
    for await (const event of await client.messages.create({ ...asked, stream: true })) {
      kinds[event.type] = (kinds[event.type] ?? 0) + 1;
      if (event.type === "content_block_delta" && event.delta.type === "text_delta") seen.text += event.delta.text;
    }
    return { kinds };
  },
};

async function show(how, content) {
  const seen = { text: "" };
  try {
    const asked = { model: "claude-haiku-5-5", max_tokens: 500, messages: [{ role: "user", content }] };
    return { ...(await HOW[how](asked, seen)), ...seen };
  } catch (error) {
    const { status, type, requestID } = error instanceof APIError ? error : {};
    return { error: error.constructor.name, status, type, requestID, ...seen };
  }
}

const cases = [];
for (let n = 0; n < rest.length; n += 2) cases.push(show(rest[n], rest[n + 1]));
for (const seen of await Promise.all(cases)) console.log(JSON.stringify(seen));
