// Reads turns with a browser's clients, a page each, all at once: `browser.mjs CLIENT URL [CLIENT URL ...]`. One line for each.
// WebKit reads them all in one page.
import { browse, bundle } from "./chromium.mjs";
import { browseWebKit } from "./webkit.mjs";

const cases = [];
for (let n = 2; n < process.argv.length; n += 2) cases.push(process.argv.slice(n, n + 2));

const readAll = (cases) => Promise.all(cases.map(([client, url]) => globalThis.CLIENTS[client](url)));

/** The page has no origin, so it may read from others only without the checks of the same-origin policy. */
async function readInWebKit() {
  const script = await bundle("page.mjs");
  return browseWebKit(async (page) => (await page.run(script), page.evaluate(readAll, cases)), ["--disable-web-security=true"]);
}

const read = (open) => Promise.all(cases.map(async (one) => (await open(new URL(one[1]).origin)).evaluate(readAll, [one])));
const shown = process.env.WEBKIT ? await readInWebKit() : (await browse("page.mjs", read)).flat();
for (const one of shown) console.log(JSON.stringify(one));
