// The page examples/htmx.html in Chromium: `htmx.mjs VERSION URL MESSAGE`, with htmx of that major version. Asks, and
// prints what the page shows at the end, and after a reload. Its link names a foreign server, which the page must not
// ask. The first requests for events get no stream.
import { readFile } from "node:fs/promises";
import { launch } from "./browsers.mjs";

const [version, url, message] = process.argv.slice(2);

const browser = await launch(["--disable-features=LocalNetworkAccessChecks"]);
const page = await browser.newPage({ viewport: { width: 400, height: 200 } });
page.on("pageerror", (error) => console.error(error));
const link = `${url}/htmx.html?server=http://foreign.invalid`;
await page.route(link, async (route) =>
  route.fulfill({ contentType: "text/html", body: await readFile("../../../examples/htmx.html") }),
);
const scripts = { 2: ["htmx-v2/dist/htmx.min.js", "htmx-ext-sse/sse.js"], 4: ["htmx.org/dist/htmx.min.js", "htmx.org/dist/ext/hx-sse.min.js"] };
await page.route(`${url}/node_modules/**`, async (route) => {
  const script = scripts[version][route.request().url().endsWith("sse.min.js") ? 1 : 0];
  await route.fulfill({ contentType: "text/javascript", body: await readFile(`node_modules/${script}`) });
});
await page.route("**/events?*", (route) => route.fulfill({ status: 503, json: { error: "unavailable" } }), { times: 1 });
await page.route("**/events?*", (route) => route.abort(), { times: 1 });
await page.goto(link);
await page.fill("input", message);
await page.click("button");
const read = async () => {
  await page.waitForFunction(() => document.querySelector(".outcome")?.textContent);
  return page.evaluate(shown);
};
const shown = () => {
  const answer = document.querySelector(".answer");
  const textOf = (selector) => answer.querySelector(selector).textContent;
  const turn = answer.getAttribute("hx-sse:connect").split("/")[3];
  return { turn, text: textOf(".text"), outcome: textOf(".outcome"), failed: textOf(".failed") };
};
console.log(JSON.stringify(await read()));
await page.reload();
console.log(JSON.stringify(await read()));
await browser.close();
