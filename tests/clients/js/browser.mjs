// Reads turns with a browser's clients, a page each, all at once: `browser.mjs CLIENT URL [CLIENT URL ...]`. One line for each.
import { browse } from "./chromium.mjs";

const rest = process.argv.slice(2);

await browse("page.mjs", async (open) => {
  const cases = [];
  for (let n = 0; n < rest.length; n += 2) {
    const [client, url] = [rest[n], rest[n + 1]];
    const page = await open(new URL(url).origin);
    cases.push(page.evaluate(([client, url]) => globalThis.CLIENTS[client](url), [client, url]));
  }
  for (const shown of await Promise.all(cases)) console.log(JSON.stringify(shown));
});
