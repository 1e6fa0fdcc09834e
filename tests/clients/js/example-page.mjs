// A page of examples/ in Chromium: `example-page.mjs URL MESSAGE [FILE]`. FILE is the page if no server has it.
// Prints a line in the middle of the answer, and another with what the page shows at its end.
import { readFile } from "node:fs/promises";
import { launch } from "./browsers.mjs";

const [url, message, file] = process.argv.slice(2);

const browser = await launch(["--disable-features=LocalNetworkAccessChecks"]);
const context = await browser.newContext({ httpCredentials: { username: "ada", password: "lovelace" }, viewport: { width: 400, height: 200 } });
const page = await context.newPage();
page.on("pageerror", (error) => console.error(error));
if (file) await page.route(url, async (route) => route.fulfill({ contentType: "text/html", body: await readFile(file) }));
await page.goto(url);
await page.fill("[name=message]", message);
await page.click("button:text-is('Ask')");
const shown = () => ["text", "outcome"].map((name) => document.querySelector(`.${name}`).textContent);
await page.waitForFunction((shown) => eval(shown)()[0].length > 80, shown.toString());
console.log(JSON.stringify(await page.evaluate(shown)));
await page.waitForFunction((shown) => eval(shown)()[1], shown.toString());
console.log(JSON.stringify(await page.evaluate(shown)));
await browser.close();
