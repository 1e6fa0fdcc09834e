// The page examples/htmx.html in Chromium: `htmx.mjs URL MESSAGE`. Asks, and prints what the page shows at the end, and
// after a reload. Its link names a foreign server, which the page must not ask.
import { readFile } from "node:fs/promises";
import { launch } from "./browsers.mjs";

const [url, message] = process.argv.slice(2);

const browser = await launch(["--disable-features=LocalNetworkAccessChecks"]);
const page = await browser.newPage({ viewport: { width: 400, height: 200 } });
page.on("pageerror", (error) => console.error(error));
const link = `${url}/htmx.html?server=http://foreign.invalid`;
await page.route(link, async (route) =>
  route.fulfill({ contentType: "text/html", body: await readFile("../../../examples/htmx.html") }),
);
await page.route(`${url}/node_modules/**`, async (route) =>
  route.fulfill({ contentType: "text/javascript", body: await readFile(`.${new URL(route.request().url()).pathname}`) }),
);
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
  const turn = answer.getAttribute("sse-connect").split("/")[3];
  return { turn, text: textOf(".text"), outcome: textOf(".outcome"), failed: textOf(".failed") };
};
console.log(JSON.stringify(await read()));
await page.reload();
console.log(JSON.stringify(await read()));
await browser.close();
