// What AI SDK makes of streams: `messages.mjs CHUNKS`, a JSON list of lists of chunks. One message a line.
import { readUIMessageStream } from "ai";

for (const chunks of JSON.parse(process.argv[2])) {
  const stream = ReadableStream.from(chunks);
  let message;
  for await (const sofar of readUIMessageStream({ stream, onError() {} })) message = sofar;
  console.log(JSON.stringify(message));
}
