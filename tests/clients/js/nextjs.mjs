// The app of examples/nextjs in Chromium: `nextjs.mjs URL MESSAGE`. A user logs in, asks, and reloads in mid-answer.
// Prints one line with what the page shows, and the statuses of a request without a login, by the user, and by another user.
import { chromium } from "playwright-core";

const [url, message] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
const statuses = [];

/** Opens the app as a user. */
async function open(user) {
  const page = await (await browser.newContext()).newPage();
  page.on("pageerror", (error) => console.error(error));
  const note = async () => statuses.push(await page.evaluate(async () => (await fetch("/api/chat/my-chat/messages")).status));
  await page.goto(url);
  if (!statuses.length) await note();
  await page.fill("[name=user]", user);
  await Promise.all([page.waitForResponse((response) => response.url().endsWith("/login")), page.click("text=Log in")]);
  await page.waitForSelector("[name=message]");
  return { page, note };
}

const { page, note } = await open("ada");
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
const { note: noteOther } = await open("eve");
await noteOther();
// The chat is loaded, though no answer runs.
await page.reload();
await page.waitForSelector("p");
console.log(JSON.stringify({ shown: whole, loaded: await shown(), statuses }));
await browser.close();
