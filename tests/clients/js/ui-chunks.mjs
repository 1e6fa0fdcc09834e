// What a version of AI SDK makes of streams: `ui-chunks.mjs PACKAGE CHUNKS`, a JSON list of lists of chunks. The chunks pass
// the transport of useChat, which checks them against its schema. One message and its errors a line.
const [, , name, lists] = process.argv;
const { DefaultChatTransport, readUIMessageStream } = await import(name);

for (const chunks of JSON.parse(lists)) {
  const body = [...chunks.map((chunk) => JSON.stringify(chunk)), "[DONE]"].map((data) => `data: ${data}\n\n`).join("");
  const headers = { "content-type": "text/event-stream", "x-vercel-ai-ui-message-stream": "v1" };
  const transport = new DefaultChatTransport({ api: "http://127.0.0.1/", fetch: async () => new Response(body, { headers }) });
  const stream = await transport.sendMessages({ chatId: "c", messages: [], trigger: "submit-message" });
  const errors = [];
  let message;
  try {
    for await (const sofar of readUIMessageStream({ stream, onError: (error) => errors.push(String(error)) })) message = sofar;
  } catch (error) {
    errors.push(String(error));
  }
  console.log(JSON.stringify({ message, errors }));
}
