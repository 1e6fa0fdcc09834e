// Reads one chat completion with OpenAI's SDK, and resumes it after each cut: `openai-chat-resume.mjs KEY URL QUESTION`.
import OpenAI from "openai";

const [key, url, content] = process.argv.slice(2);
const client = new OpenAI({ apiKey: key, baseURL: `${url}/v1` });
const request = { model: "claude-haiku-5-5", stream: true, messages: [{ role: "user", content }] };
let chunks = [];
let turn;
for (let isWhole = false; !isWhole; ) {
  try {
    const query = { dialect: "openai-chat", after: chunks.at(-1)?.cursor };
    const { data, response } = await (turn
      ? client.get(`/turns/${turn}/events`, { query, stream: true }).withResponse()
      : client.chat.completions.create(request).withResponse());
    turn ??= response.headers.get("tailrace-turn");
    for await (const chunk of data) chunks.push(chunk);
    isWhole = true;
  } catch (error) {
    // Without a turn the request itself has failed.
    if (!turn) throw error;
    chunks = chunks.slice(0, chunks.findLastIndex((chunk) => chunk.cursor !== undefined) + 1);
  }
}
const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
console.log(JSON.stringify({ turn, text, finish: chunks.at(-1).choices[0].finish_reason }));
