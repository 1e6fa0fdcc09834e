// The chat of docs/CHAT.md in Chromium, as a person uses it: `build-a-chat.mjs URL`. Prints a line with what the page showed.
import { launch, watch } from "./browsers.mjs";

const [url] = process.argv.slice(2);
const browser = await launch(["--disable-features=LocalNetworkAccessChecks"]);

async function contextOf(username, password) {
  return browser.newContext({ httpCredentials: { username, password }, viewport: { width: 500, height: 500 } });
}

const context = await contextOf("ada", "lovelace");
const watched = [];

async function open(context, address) {
  const page = await context.newPage();
  watched.push(watch(page, new URL(address).origin));
  await page.goto(address);
  await page.waitForSelector("form");
  return page;
}

async function send(page, text) {
  await page.fill("[name=text]", text);
  await page.click("text=Send");
}

const press = (page, name) => page.getByRole("button", { name, exact: true }).last().click();
const texts = (page) => page.locator("article").evaluateAll((found) => found.map((one) => ["b", "p", "small"].map((part) => one.querySelector(part).textContent)));
const until = (page, test, arg) => page.waitForFunction(test, arg, { polling: 50 });
const longer = (page, chars) => until(page, (chars) => [...document.querySelectorAll("article p")].at(-1)?.textContent.length > chars, chars);
const ended = (page, count) =>
  until(page, (count) => {
    const outcomes = [...document.querySelectorAll("article small")].map((one) => one.textContent);
    return outcomes.length === count && outcomes.every((one) => one !== "running");
  }, count);

const page = await open(context, url);
await send(page, "#sim words=3000 rate=60");
await longer(page, 80);
await page.reload();
await longer(page, 160);
const tab = await open(context, page.url());
await longer(tab, 240);
await press(tab, "Stop");
await Promise.all([ended(page, 1), ended(tab, 1)]);
const stopped = await texts(page);

await page.getByRole("button", { name: "Edit" }).click();
await send(page, "#sim words=4 rate=0");
await until(page, () => document.querySelector("article small")?.textContent === "completed");
const edited = await texts(page);
await press(page, "Try again");
await page.getByRole("button", { name: "3", exact: true }).waitFor();
await ended(page, 1);
await page.getByRole("button", { name: "1", exact: true }).click();
await until(page, () => document.querySelector("article small").textContent === "cancelled");
await page.setInputFiles("[name=file]", { name: "river.txt", mimeType: "text/plain", buffer: Buffer.from("A river.") });
await send(page, "#sim words=5 rate=0");
await ended(page, 2);

await send(page, "#sim words=2 rate=0 tool=clock");
await tab.getByRole("button", { name: "Allow" }).click();
await Promise.all([ended(page, 4), ended(tab, 4)]);
const approved = (await texts(page)).at(-1);

await context.setOffline(true);
await send(page, "#sim words=6 rate=0");
await page.getByRole("button", { name: "Discard" }).waitFor();
await context.setOffline(false);
await Promise.all([ended(page, 5), ended(tab, 5)]);
const last = (await texts(tab)).at(-1);

await page.click("text=New chat");
await send(page, "Name a river.");
await ended(page, 1);
await until(page, () => document.querySelectorAll("nav a").length === 3);
const history = await page.locator("nav a").allTextContents();
await page.locator("nav a").last().click();
await ended(page, 5);
const other = await open(await contextOf("eve", "moneypenny"), url);
await other.waitForTimeout(300);
const theirs = await other.locator("nav a").allTextContents();
console.log(JSON.stringify({ stopped, edited, approved, last, history, theirs, session: page.url().split("#")[1], failures: watched.flatMap(({ complaints }) => complaints) }));
await browser.close();
