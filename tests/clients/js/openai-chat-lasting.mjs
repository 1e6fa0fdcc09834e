// OpenAI's SDK reads one chat completion to its end: `openai-chat-lasting.mjs KEY URL QUESTION`. What it shows, by hand and added up.
import OpenAI from "openai";

const [key, url, content] = process.argv.slice(2);
const client = new OpenAI({ apiKey: key, baseURL: `${url}/v1`, maxRetries: 0 });
const runner = client.chat.completions.stream({ model: "claude-haiku-5-5", messages: [{ role: "user", content }] });
let text = "";
for await (const chunk of runner) text += chunk.choices[0]?.delta.content ?? "";
const whole = await runner.finalChatCompletion();
console.log(JSON.stringify({ id: whole.id, text, whole: whole.choices[0].message.content, finish: whole.choices[0].finish_reason }));
