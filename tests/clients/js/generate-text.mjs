// AI SDK's `generateText` with its default settings: `generate-text.mjs URL KEY QUESTION`. Prints the text.
import { createAnthropic } from "@ai-sdk/anthropic";
import { generateText } from "ai";

const [url, apiKey, prompt] = process.argv.slice(2);
const { text } = await generateText({ model: createAnthropic({ baseURL: `${url}/v1`, apiKey })("claude-haiku-5-5"), prompt });
console.log(JSON.stringify({ text }));
