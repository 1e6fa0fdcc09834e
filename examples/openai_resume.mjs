// Streams a chat completion of OpenAI's SDK, and resumes it after the last cursor when the connection was cut.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://localhost:8000/v1", apiKey: "my-secret-key" });
const once = { headers: { "Idempotency-Key": crypto.randomUUID() } };
const body = { model: "claude-sonnet-5-5", messages: [{ role: "user", content: "Name a river." }], stream: true };
const rest = (turn, after) =>
  client.get(`/turns/${turn}/events`, { query: { dialect: "openai-chat", after }, stream: true });

let text = "";
let turn, after;
for (let tries = 1; ; tries++) {
  let said = ""; // since the last cursor: discarded after a cut
  try {
    for await (const chunk of await (after ? rest(turn, after) : client.chat.completions.create(body, once))) {
      turn = chunk.id.slice("chatcmpl-".length);
      said += chunk.choices[0]?.delta.content ?? "";
      if (chunk.cursor) [text, said, after] = [text + said, "", chunk.cursor];
    }
    break;
  } catch (error) {
    const isCut = !(error instanceof OpenAI.APIError) || error instanceof OpenAI.APIConnectionError;
    if (!isCut || tries === 10) throw error;
    await new Promise((wake) => setTimeout(wake, 1000)); // resume after the last cursor
  }
}
console.log(text);
