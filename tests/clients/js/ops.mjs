// The page /ops in Chromium: `ops.mjs GATEWAY FOLDER [KEY]`. Prints a line for a light desktop and a dark phone.
// With a KEY, it first tries a wrong one. A screenshot of each is written to FOLDER.
import { launch } from "./browsers.mjs";

const [gateway, folder, key] = process.argv.slice(2);
const SIZES = { desktop: { width: 1440, height: 1000 }, phone: { width: 390, height: 844 } };
const browser = await launch();

for (const [colorScheme, size] of [["light", "desktop"], ["dark", "phone"]]) {
  const viewport = SIZES[size];
  const page = await browser.newPage({ viewport, colorScheme });
  const [complaints, elsewhere, login] = [[], [], []];
  page.on("console", (message) => /security policy/i.test(message.text()) && complaints.push(message.text()));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("request", (request) => request.url().startsWith(`${gateway}/`) || elsewhere.push(request.url()));
  await page.goto(`${gateway}/ops`);
  if (key) {
    // A space of width 0, which is copied with a key from some pages, cannot be sent in a header.
    const tried = `${key}\u200b`;
    await page.getByLabel("Key").fill(tried);
    await page.getByRole("button", { name: "Open" }).click();
    login.push((await page.getByLabel("Key").inputValue()) === tried ? "refused" : "taken");
  }
  for (const tried of key ? ["wrong", key] : []) {
    await page.getByLabel("Key").fill(tried);
    const [answer] = await Promise.all([page.waitForResponse(`${gateway}/ops/values`), page.getByRole("button", { name: "Open" }).click()]);
    await answer.finished();
    login.push(answer.status());
  }
  await page.waitForSelector("article");
  await page.screenshot({ path: `${folder}/ops-${colorScheme}-${size}.png` });
  const first = page.locator("article").first();
  await first.locator("svg").focus();
  await page.keyboard.press("ArrowLeft");
  const earlier = await first.locator("thead th").first().textContent();
  const shown = await page.evaluate(() => ({
    panels: Object.fromEntries([...document.querySelectorAll("article")].map((one) => [one.querySelector(".about").textContent, one.querySelector(".now").textContent])),
    notices: [...document.querySelectorAll(".notice:not(noscript *)")].map((one) => one.textContent),
    counted: [...document.querySelectorAll("article")].filter((one) => one.querySelector(".foot").textContent.includes("counted since")).map((one) => one.querySelector(".about").textContent),
    isWide: document.documentElement.scrollWidth > innerWidth,
    links: [...document.querySelectorAll(".site nav a")].map((one) => one.pathname),
    tallest: Math.max(...[...document.querySelectorAll(".empty .plot")].map((one) => one.clientHeight)),
    areEmptyLast: [...document.querySelectorAll(".grid")].every((grid) => {
      const tops = (found) => [...grid.querySelectorAll(found)].map((one) => one.getBoundingClientRect().top);
      return Math.max(...tops("article:not(.empty)")) <= Math.min(...tops(".empty"));
    }),
    background: getComputedStyle(document.body).backgroundColor,
  }));
  await page.route("**/ops/values", (route) => route.abort());
  await page.waitForSelector("body.stale");
  const away = await page.locator("#state").textContent();
  await page.unroute("**/ops/values");
  await page.route("**/ops/values", async (route) => {
    const response = await route.fetch();
    const json = await response.json();
    json.version = "later";
    json.groups[0].charts.reverse();
    await route.fulfill({ response, json });
  });
  await page.waitForFunction(() => document.querySelector("#version").textContent === "later");
  const upgraded = await first.locator(".about").textContent();
  console.log(JSON.stringify({ size, colorScheme, ...shown, away, upgraded, earlier, complaints, elsewhere, login }));
  await page.close();
}
await browser.close();
