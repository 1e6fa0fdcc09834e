// The page examples/htmx.html in Chromium: `htmx.mjs URL MESSAGE`. Asks, and prints what the page shows at the end.
import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const [url, message] = process.argv.slice(2);

const args = ["--no-sandbox", "--disable-features=LocalNetworkAccessChecks"];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args });
const page = await browser.newPage({ viewport: { width: 400, height: 200 } });
page.on("pageerror", (error) => console.error(error));
await page.route(`${url}/htmx.html?server=`, async (route) =>
  route.fulfill({ contentType: "text/html", body: await readFile("../../../examples/htmx.html") }),
);
await page.route(`${url}/node_modules/**`, async (route) =>
  route.fulfill({ contentType: "text/javascript", body: await readFile(`.${new URL(route.request().url()).pathname}`) }),
);
await page.goto(`${url}/htmx.html?server=`);
await page.fill("input", message);
await page.click("button");
await page.waitForFunction(() => document.querySelector(".outcome")?.textContent);
const shown = await page.evaluate(() => {
  const answer = document.querySelector(".answer");
  const textOf = (selector) => answer.querySelector(selector).textContent;
  const turn = answer.getAttribute("sse-connect").split("/")[3];
  return { turn, text: textOf(".text"), outcome: textOf(".outcome"), failed: textOf(".failed") };
});
console.log(JSON.stringify(shown));
await browser.close();
