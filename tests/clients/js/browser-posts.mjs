// POSTs a question with a client of page.mjs in Chromium: `browser-posts.mjs CLIENT URL HEADERS BODY DIALECT`.
import { browse } from "./chromium.mjs";

const [client, url, headers, body, dialect] = process.argv.slice(2);

await browse("page.mjs", async (open) => {
  const page = await open(new URL(url).origin);
  const given = [client, url, JSON.parse(headers), body, dialect];
  const post = ([client, ...given]) => globalThis.POST_CLIENTS[client](...given);
  console.log(JSON.stringify(await page.evaluate(post, given)));
});
