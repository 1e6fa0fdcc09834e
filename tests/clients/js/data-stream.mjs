// What assistant-ui's useDataStreamRuntime shows in Chromium, each chat in a page of its own, all at once:
// `data-stream.mjs URL BODY CONTENTS [URL BODY CONTENTS ...]`. Prints a line for each: what the thread has at the end.
import { browse } from "./chromium.mjs";

const rest = process.argv.slice(2);

async function chat(open, url, body, contents) {
  const page = await open(url);
  const requests = [];
  page.on("request", (request) => request.method() === "POST" && requests.push(request.postDataJSON()));
  await page.evaluate((body) => globalThis.begin(body), body);
  await page.waitForFunction(() => globalThis.thread);
  for (const content of contents) {
    const before = await page.evaluate((content) => {
      const before = globalThis.shown().messages.length;
      globalThis.thread.append({ role: "user", content });
      return before;
    }, content);
    const isEnded = (before) => {
      const { isRunning, messages } = globalThis.shown();
      return !isRunning && messages.length === before + 2 && messages.at(-1).status.type !== "running";
    };
    await page.waitForFunction(isEnded, before, { polling: 50 });
  }
  return { ...(await page.evaluate(() => globalThis.shown())), requests };
}

await browse("data-stream.jsx", async (open) => {
  const chats = [];
  while (rest.length) {
    const [url, body, contents] = rest.splice(0, 3);
    chats.push(chat(open, url, JSON.parse(body), JSON.parse(contents)));
  }
  for (const seen of await Promise.all(chats)) console.log(JSON.stringify(seen));
});
