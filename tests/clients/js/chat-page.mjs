// The page at / in Chromium: `chat-page.mjs STEPS GATEWAY …`. Prints one line with what it showed.
import { chromium } from "playwright-core";

const [steps, gateway, ...given] = process.argv.slice(2);
const SIZES = { desktop: { width: 1280, height: 860 }, phone: { width: 390, height: 844 } };
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });

/** Opens a page that notes what a policy forbids, what fails, and what is requested elsewhere. */
async function open(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const seen = { complaints: [], elsewhere: [] };
  page.on("console", (message) => /security policy|trusted/i.test(message.text()) && seen.complaints.push(message.text()));
  page.on("pageerror", (error) => seen.complaints.push(String(error)));
  page.on("dialog", (dialog) => (seen.complaints.push(dialog.message()), dialog.dismiss()));
  context.on("request", (request) => /^(blob:|data:)/.test(request.url()) || request.url().startsWith(`${gateway}/`) || seen.elsewhere.push(request.url()));
  return { context, page, seen };
}

const text = (page) => page.locator(".answer .text").last().textContent();
const longer = (page, chars) => page.waitForFunction((chars) => document.querySelector(".answer .text")?.textContent.length > chars, chars);
const marked = (page, state) => page.waitForFunction((state) => document.querySelector("#mark").textContent === state, state);

/** Returns what the page of a turn shows, after a replay that was begun, stopped and moved with the keyboard. */
async function replayed(page, shoot) {
  const shown = () => page.locator("#text").textContent();
  await page.locator("#steps tbody tr").first().waitFor();
  await page.waitForFunction(() => document.querySelector("#text").textContent.length > 0);
  const whole = await shown();
  for (const colorScheme of ["light", "dark"]) {
    for (const [size, viewport] of Object.entries(SIZES)) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize(viewport);
      await shoot(`${colorScheme}-${size}`);
    }
  }
  const isWide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  await page.locator("#speed").selectOption("16");
  await page.locator("#play").focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction((length) => ((now) => now > 0 && now < length)(document.querySelector("#text").textContent.length), whole.length);
  await page.keyboard.press("Enter");
  const paused = await shown();
  await page.keyboard.press("Tab");
  await page.keyboard.press("End");
  const steps = await page.locator("#steps td:last-child").allTextContents();
  return { whole, isPart: whole.startsWith(paused) && paused.length < whole.length, isBack: (await shown()) === whole, steps, isWide };
}

const STEPS = {
  /** Asks; reloads; is offline for a moment; then waits for the end, whatever happens to the gateway. */
  async interrupted(line) {
    const { context, page, seen } = await open({ viewport: SIZES.desktop });
    await page.goto(gateway);
    await page.getByLabel("Question").fill(line);
    await page.keyboard.press("Enter");
    await longer(page, 80);
    await page.reload();
    await longer(page, 200);
    await context.setOffline(true);
    await marked(page, "reconnecting");
    const before = (await text(page)).length;
    await context.setOffline(false);
    await marked(page, "caught up");
    await longer(page, before);
    await page.waitForSelector(".meta");
    const answers = await page.locator(".answer").count();
    const heard = await page.locator("[aria-live], [role=status], [role=alert]").allTextContents();
    return { text: (await text(page)).trim(), answers, title: await page.title(), isReadWordByWord: heard.some((one) => one.includes("w000001")), ...seen };
  },

  /** Breaks an answer in every way that the demo offers, at the address `gateway` with the token of `up`. */
  async demo(token, folder) {
    const { page, seen } = await open({ viewport: SIZES.desktop });
    const shoot = (name) => page.screenshot({ path: `${folder}/demo-${name}.png` });
    await page.goto(`${gateway}/`);
    await page.getByRole("button", { name: "Demo" }).click();
    await page.locator("#demo").getByText("open the address that").waitFor();
    const withoutToken = await page.getByRole("button", { name: /^Kill/, disabled: true }).count();
    await page.goto(`${gateway}/#demo=${token}`);
    const parts = page.locator(".parts li");
    await parts.nth(5).waitFor();
    const address = page.url();
    await shoot("before");
    const press = (name) => page.getByRole("button", { name, exact: true }).click();
    await press("Start a long answer");
    await longer(page, 80);
    await press("Second reader");
    await press("Cut my connection");
    await marked(page, "reconnecting");
    await shoot("cut");
    await page.waitForSelector(".ids .good:has-text('goes on after')");
    const pids = await parts.locator(".pid").allTextContents();
    await page.waitForSelector(".parts .used:has-text('writes the answer')");
    await press("Kill this generator");
    await page.waitForSelector(".ids .good:has-text('takes over')");
    await shoot("taken-over");
    await press("Kill this gateway");
    await marked(page, "reconnecting");
    await marked(page, "caught up");
    await page.waitForSelector(".proof:visible", { timeout: 60_000 });
    await page.waitForFunction(() => [...document.querySelectorAll(".parts li")].every((one) => one.className === "up"));
    await shoot("whole");
    const after = await parts.locator(".pid").allTextContents();
    const names = await parts.locator("b").allTextContents();
    const proof = await page.locator(".proof").textContent();
    const second = await page.locator(".other .mark").textContent();
    const answer = (await text(page)).trim();
    await page.getByRole("link", { name: "Timeline" }).click();
    const timeline = await replayed(page, (name) => page.screenshot({ path: `${folder}/turn-${name}.png`, fullPage: true }));
    return {
      withoutToken,
      address: address.replace(gateway, ""),
      text: answer,
      killed: names.filter((_, at) => pids[at] !== after[at]),
      proof,
      second,
      timeline,
      ...seen,
    };
  },

  /** Shows a session in each size and colour scheme, after a key, and looks for what an answer must not change. */
  async hostile(session, folder, key) {
    const shown = [];
    for (const [colorScheme, size] of [["light", "desktop"], ["dark", "phone"]]) {
      const viewport = SIZES[size];
      const { context, page, seen } = await open({ viewport, colorScheme });
      const statuses = new Set();
      page.on("response", (response) => response.url().includes("/v1/") && statuses.add(response.status()));
      await page.goto(`${gateway}/#${session}`);
      await page.locator("#key").waitFor();
      const withoutKey = [...statuses];
      for (const tried of ["wrong", key]) {
        await page.locator("#key").fill(tried);
        await page.keyboard.press("Enter");
        if (tried === "wrong") await page.waitForFunction(() => /credential|key/.test(document.querySelector("#refusal").textContent) && document.querySelector("#login").open);
      }
      await page.waitForSelector(".meta");
      const found = await page.evaluate(() => ({
        text: document.querySelector(".answer .text").textContent,
        made: [...document.querySelectorAll(".answer .text *")].map((one) => one.localName),
        links: [...document.querySelectorAll(".answer .text a")].map((one) => [one.protocol, one.target, one.rel]),
        attributes: [...new Set([...document.querySelectorAll(".answer .text *")].flatMap((one) => one.getAttributeNames()))],
        ran: globalThis.ran ?? null,
        coloured: document.querySelectorAll(".code [class^=hljs]").length,
        isWide: document.documentElement.scrollWidth > innerWidth,
        background: getComputedStyle(document.body).backgroundColor,
      }));
      await page.screenshot({ path: `${folder}/page-${colorScheme}-${size}.png` });
      shown.push({ size, colorScheme, withoutKey, ...found, ...seen });
      await context.close();
    }
    return { pages: shown };
  },
};

console.log(JSON.stringify(await STEPS[steps](...given)));
await browser.close();
