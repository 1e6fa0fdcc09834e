// Anthropic's SDK: `anthropic.mjs URL KEY HOW QUESTION`, HOW is `stream`, `whole` or `raw`. One line: the message, or the error.
import Anthropic, { APIError } from "@anthropic-ai/sdk";

const [baseURL, apiKey, how, question] = process.argv.slice(2);
const client = new Anthropic({ baseURL, apiKey });
const asked = { model: "claude-haiku-5-5", max_tokens: 500, messages: [{ role: "user", content: question }] };

let text = "";
let id;

/** Adds up the events without a helper. */
async function raw() {
  const kinds = {};
  for await (const event of await client.messages.create({ ...asked, stream: true })) {
    kinds[event.type] = (kinds[event.type] ?? 0) + 1;
    if (event.type === "content_block_delta" && event.delta.type === "text_delta") text += event.delta.text;
  }
  return { text, kinds };
}

const HOW = {
  stream: async () => {
    const stream = client.messages.stream(asked).on("text", (delta) => (text += delta));
    stream.on("streamEvent", (event) => (id ??= event.message?.id));
    return { message: await stream.finalMessage(), id, text };
  },
  whole: async () => ({ message: await client.messages.create(asked) }),
  raw,
};

try {
  console.log(JSON.stringify(await HOW[how]()));
} catch (error) {
  const { status, type, requestID } = error instanceof APIError ? error : {};
  console.log(JSON.stringify({ error: error.constructor.name, status, type, requestID, id, text, message: error.message }));
}
