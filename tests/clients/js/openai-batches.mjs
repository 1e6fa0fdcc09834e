// Files and batches with OpenAI's SDK: `openai-batches.mjs KEY URL QUESTION`. Prints one line.
import OpenAI, { toFile } from "openai";

const [apiKey, url, content] = process.argv.slice(2);
const client = new OpenAI({ apiKey, baseURL: `${url}/v1` });
const endpoint = "/v1/chat/completions";
const body = { model: "claude-haiku-5-5", messages: [{ role: "user", content }] };
const lines = ["one", "two"].map((custom_id) => `${JSON.stringify({ custom_id, method: "POST", url: endpoint, body })}\n`);
const input = lines.join("");

const file = await client.files.create({ file: await toFile(Buffer.from(input), "größe.jsonl"), purpose: "batch" });
const isSame = (await (await client.files.content(file.id)).text()) === input;
let batch = await client.batches.create({ input_file_id: file.id, endpoint, completion_window: "24h" });
while (["validating", "in_progress"].includes(batch.status)) {
  await new Promise((done) => setTimeout(done, 50));
  batch = await client.batches.retrieve(batch.id);
}
const output = await (await client.files.content(batch.output_file_id)).text();
const answers = output.trim().split("\n").map((line) => JSON.parse(line).response.body.choices[0].message.content);
const files = [];
for await (const one of client.files.list({ limit: 1 })) files.push(one.filename);
const batches = [];
for await (const one of client.batches.list({ limit: 1 })) batches.push(one.id === batch.id);
const { deleted } = await client.files.delete(file.id);
console.log(JSON.stringify({ isSame, status: batch.status, answers, files, batches, deleted }));
