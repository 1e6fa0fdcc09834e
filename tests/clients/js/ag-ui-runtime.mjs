// What assistant-ui's useAgUiRuntime shows in Chromium after it has run a tool of the page: `ag-ui-runtime.mjs URL QUESTION`.
// Prints what the thread has when an answer has ended without a call, or after 10 seconds.
import { browse } from "./chromium.mjs";

const [url, question] = process.argv.slice(2);

await browse("ag-ui-runtime.jsx", async (open) => {
  const page = await open(url);
  await page.evaluate(() => globalThis.begin());
  await page.waitForFunction(() => globalThis.thread);
  await page.evaluate((content) => globalThis.thread.append(content), question);
  const isAnswered = () => {
    const { isRunning, messages } = globalThis.shown();
    const last = messages.at(-1);
    return !isRunning && last?.role === "assistant" && last.status.type === "complete" && last.content.at(-1)?.type === "data";
  };
  await page.waitForFunction(isAnswered, undefined, { polling: 50, timeout: 10_000 }).catch(() => {});
  console.log(JSON.stringify(await page.evaluate(() => globalThis.shown())));
});
