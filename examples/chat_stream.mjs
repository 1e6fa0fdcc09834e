// Asks at /chat/stream, and repeats the POST with the last cursor after a cut: node chat_stream.mjs "Name a river."
const { TAILRACE_URL: base = "http://127.0.0.1:8000", TAILRACE_KEY: key } = process.env;
const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };

async function ask(message, show) {
  const once = crypto.randomUUID(); // a repeated POST gets the same turn
  const post = { method: "POST", headers: { ...headers, "Idempotency-Key": once }, body: JSON.stringify({ message }) };
  let after = "";
  for (let tries = 0; tries < 10; tries++) {
    try {
      const response = await fetch(`${base}/chat/stream${after}`, post);
      let buffer = "";
      for await (const piece of response.body.pipeThrough(new TextDecoderStream())) {
        const lines = (buffer + piece).split("\n\n");
        buffer = lines.pop();
        for (const line of lines) {
          if (!line.startsWith("data: ")) continue; // a heartbeat
          const data = JSON.parse(line.slice(6));
          if (data.cursor) after = `?after=${data.cursor}`;
          if (data.type === "delta") show(data.text);
          else return data; // done, or error
        }
      }
    } catch {
      // cut: repeat the POST
    }
    await new Promise((wake) => setTimeout(wake, 1000));
  }
}

console.log(await ask(process.argv[2] ?? "Name a river.", (text) => process.stdout.write(text)));
