// OpenAI's SDK over a WebSocket (`npm install openai ws`): the answer goes on after a cut, which ends the loop without an
// error.
import OpenAI from "openai";
import { ResponsesWS } from "openai/resources/responses/ws";

const client = new OpenAI({ baseURL: "http://localhost:8000/v1", apiKey: "my-secret-key" });
const create = { type: "response.create", model: "claude-sonnet-5-5", input: "Why is the sky blue?" };
create.idempotency_key = crypto.randomUUID();
const ends = ["response.completed", "response.incomplete", "response.failed", "error"];
let last;
while (!ends.includes(last?.type)) {
  const rest = last && { response_id: last.response_id, starting_after: last.sequence_number };
  const connection = new ResponsesWS(client);
  connection.send(rest ? { type: "response.resume", ...rest } : create);
  for await (const { type, message } of connection.stream()) { // ends without an error after a cut
    if (type !== "message") continue;
    last = message;
    if (last.type === "response.output_text.delta") process.stdout.write(last.delta);
    if (ends.includes(last.type)) break;
  }
  connection.close();
  await new Promise((resolve) => setTimeout(resolve, 1000));
}
