// Asks, or comes back, by WorkflowChatTransport: `workflow.mjs KEY URL JSON [URL JSON ...]`, all at once. One line for each.
import { WorkflowChatTransport } from "@ai-sdk/workflow/client";
import { readUIMessageStream } from "ai";

const [key, ...rest] = process.argv.slice(2);
// What it has to say of each cut is for people; what it warns of is not.
console.error = () => {};
const warned = [];
console.warn = (said) => warned.push(said);

async function read(origin, { messages, run, startIndex, body }) {
  const asked = [];
  let started = run;
  const transport = new WorkflowChatTransport({
    api: `${origin}/api/chat`,
    // It counts cuts, and what comes between them resets nothing.
    maxConsecutiveErrors: 9,
    fetch(url, init) {
      asked.push(`${init.method ?? "GET"} ${new URL(url).search}`);
      return fetch(url, { ...init, headers: { ...init.headers, authorization: `Bearer ${key}` } });
    },
    onChatSendMessage(response) {
      started = response.headers.get("x-workflow-run-id");
    },
  });
  const stream =
    run === undefined
      ? await transport.sendMessages({ trigger: "submit-message", chatId: "", messages, body })
      : await transport.reconnectToStream({ chatId: run, startIndex });
  const [counted, shown] = stream.tee();
  const chunks = [];
  const counting = counted.pipeTo(new WritableStream({ write: (chunk) => void chunks.push(chunk) }));
  let message = null;
  const errors = [];
  for await (const sofar of readUIMessageStream({ stream: shown, onError: (error) => errors.push(error.message) })) message = sofar;
  await counting;
  return { run: started, chunks, message, errors, asked };
}

const cases = [];
for (let n = 0; n < rest.length; n += 2)
  cases.push(read(rest[n], JSON.parse(rest[n + 1])).catch((error) => ({ thrown: error.message })));
for (const seen of await Promise.all(cases)) console.log(JSON.stringify({ ...seen, warned }));
