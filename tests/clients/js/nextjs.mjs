// The app of examples/nextjs in Chromium: `nextjs.mjs URL MESSAGE`. A user logs in, asks, reloads in mid-answer, and
// stops another one.
// Prints one line with what the page shows, and the statuses of a request without a login, by the user, and by another user.
import { launch } from "./browsers.mjs";

const [url, message] = process.argv.slice(2);
const browser = await launch();
const statuses = [];

const page = await (await browser.newContext({ viewport: { width: 400, height: 200 } })).newPage();
page.on("pageerror", (error) => console.error(error));
const note = async () => statuses.push(await page.evaluate(async () => (await fetch("/api/chat/my-chat/messages")).status));
await page.goto(url);
await note();
await page.fill("[name=user]", "ada");
await Promise.all([page.waitForResponse((response) => response.url().endsWith("/login")), page.click("text=Log in")]);
await page.waitForSelector("[name=message]");
await page.fill("[name=message]", message);
await page.click("text=Send");
const shown = () => page.locator("p").allTextContents();
const until = (chars, status) =>
  page.waitForFunction(
    ([chars, status]) => document.querySelector("p:nth-of-type(2) span")?.textContent.length > chars && document.querySelector("small").textContent === status,
    [chars, status],
  );
await until(80, "streaming");
await page.reload();
await until(80, "ready");
const whole = await shown();
await note();
// Another user, without a page.
const { request } = await browser.newContext();
await request.post(new URL("/login", url).href, { form: { user: "eve" } });
statuses.push((await request.get(new URL("/api/chat/my-chat/messages", url).href)).status());
// The chat is loaded, though no answer runs, and the history cannot be read at first.
let refusals = 1;
await page.route("**/messages", (route) => (refusals-- > 0 ? route.fulfill({ status: 503 }) : route.continue()));
await page.reload();
await page.waitForSelector("p");
const loaded = await shown();
await page.fill("[name=message]", "#sim words=4000 rate=20");
await page.click("text=Send");
await page.waitForFunction(() => document.querySelector("p:nth-of-type(4) span")?.textContent.length > 80);
// By keyboard: the button moves with each line of the answer, and a click would miss it.
await page.press("text=Stop", "Enter");
await page.waitForFunction(() => document.querySelector("small").textContent === "ready");
const outcome = await page.evaluate(async () => (await (await fetch("/api/chat/my-chat/messages")).json()).at(-1).metadata.outcome);
console.log(JSON.stringify({ shown: whole, loaded, statuses, outcome }));
await browser.close();
