// POSTs with sse.js in Chromium until the turn has ended: `browser-posts.mjs URL HEADERS BODY DIALECT`.
import { browse } from "./chromium.mjs";

const [url, headers, body, dialect] = process.argv.slice(2);

await browse("page.mjs", async (open) => {
  const page = await open(new URL(url).origin);
  const given = [url, JSON.parse(headers), body, dialect];
  console.log(JSON.stringify(await page.evaluate((given) => globalThis.postWithSSE(...given), given)));
});
