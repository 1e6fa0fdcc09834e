// The page /admin in Chromium or Firefox: `admin-page.mjs STEPS GATEWAY …`. Prints a line with what the page showed.
// The picture of docs/ADMIN.md: `CHROMIUM=/usr/bin/chromium node admin-page.mjs picture URL KEY PATH`.
import { readFileSync } from "node:fs";
import { isFirefox, launch, watch } from "./browsers.mjs";

const [steps, gateway, ...given] = process.argv.slice(2);
const PHONE = { width: 375, height: 812 };
const DESKTOP = { width: 1280, height: 860 };
const AXE = new URL("node_modules/axe-core/axe.min.js", import.meta.url);
const browser = await launch();

/** Opens the page, which is watched. */
async function open(options) {
  const context = await browser.newContext({ reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  const seen = watch(page, gateway);
  await page.goto(`${gateway}/admin`);
  await page.waitForSelector("#login[open]");
  return { context, page, seen };
}

const enter = async (page, key) => {
  await page.locator("#key").fill(key);
  await page.keyboard.press("Enter");
};

/** Opens a section when it is drawn, and returns the texts of its cells by rows. */
async function section(page, hash) {
  const name = hash.split("?")[0];
  await page.evaluate((id) => document.querySelector(`#${id} > .scroll:last-child table`)?.replaceChildren(), name);
  await page.evaluate((wanted) => (location.hash === `#${wanted}` ? document.querySelector(`#sections a[href="#${wanted}"]`).click() : (location.hash = wanted)), hash);
  await page.locator(`#${name} > .scroll:last-child tbody tr`).first().waitFor();
  return rows(page, name);
}

const rows = (page, name) => page.evaluate((id) => [...document.querySelectorAll(`#${id} > .scroll:last-child tbody tr`)].map((row) => [...row.cells].map((one) => one.innerText.trim())), name);

/** Presses Tab until the element that matches has the focus. Not around the end of the page: Firefox's own buttons follow
 * there, and after them WebDriver BiDi presses no button of the page any more. */
async function tabTo(page, selector, key = "Tab") {
  for (let pressed = 0; pressed < 80; pressed += 1) {
    if (await page.evaluate((one) => document.activeElement.matches(one), selector)) return;
    await page.keyboard.press(key);
  }
  throw new Error(`the keyboard does not reach ${selector}`);
}

/** Returns the pairs of labels and buttons of one line of a filter whose edges differ. */
const unaligned = (filters) => filters.flatMap((filter) => {
  const parts = [...filter.children].filter((one) => one.matches("label, button") && one.offsetParent);
  const boxes = parts.map((one) => ({ name: one.innerText.split("\n")[0], isLabel: one.matches("label"), ...one.getBoundingClientRect().toJSON() }));
  const differ = (a, b) => Math.abs(a.bottom - b.bottom) > 1 || (a.isLabel && b.isLabel && Math.abs(a.top - b.top) > 1);
  const pairs = boxes.flatMap((a, index) => boxes.slice(index + 1).map((b) => [a, b]));
  return pairs.filter(([a, b]) => a.top < b.bottom - 4 && b.top < a.bottom - 4 && differ(a, b)).map(([a, b]) => `${a.name}, ${b.name}`);
});

const STEPS = {
  /** A key that is none, one of a tenant, and an admin key, which is kept over a reload and then forgotten. */
  async login(theirs, admin) {
    const { page, seen } = await open({ viewport: DESKTOP });
    const said = [];
    for (const key of ["tr_wrong", theirs]) {
      const before = await page.locator("#refusal").textContent();
      await enter(page, key);
      await page.waitForFunction((text) => document.querySelector("#login[open] #refusal") && document.querySelector("#refusal").textContent !== text, before);
      said.push(await page.locator("#refusal").textContent());
    }
    await enter(page, admin);
    await page.locator("#spend-rows tbody tr").first().waitFor();
    await page.reload();
    await page.locator("#spend-rows tbody tr").first().waitFor();
    const current = await page.locator("[aria-current]").allTextContents();
    const links = await page.locator(".site nav a").evaluateAll((found) => found.map((one) => one.pathname));
    await page.getByRole("button", { name: "Forget key" }).click();
    await page.waitForSelector("#login[open]");
    return { said, current, links, ...seen };
  },

  /** Creates, rotates and revokes a key, and sets limits of its tenant, with the keyboard alone. */
  async keyboard(admin) {
    const { page, seen } = await open({ viewport: DESKTOP });
    const press = (key) => page.keyboard.press(key);
    await page.keyboard.type(admin);
    await press("Enter");
    await page.locator("#spend-rows tbody tr").first().waitFor();
    await tabTo(page, '#sections a[href="#keys"]');
    await press("Enter");
    await page.locator("#keys-rows tbody tr").first().waitFor();
    await tabTo(page, "#new-key");
    await press("Enter");
    await page.waitForSelector("#key-dialog[open]");
    await page.keyboard.type("orion");
    await tabTo(page, "#key-dialog [name=name]");
    await page.keyboard.type("<b>by keyboard</b>");
    await tabTo(page, "#key-dialog [name=usd_month]");
    await page.keyboard.type("0.5");
    await press("Enter");
    await page.waitForSelector("#secret-dialog[open]");
    const first = await page.locator("#secret").inputValue();
    // A key that is shown only once is not closed by Escape.
    await press("Escape");
    await press("Escape");
    const isOpen = await page.locator("#secret-dialog").evaluate((one) => one.open);
    await tabTo(page, "#secret-dialog .main");
    await press("Enter");
    await page.waitForFunction(() => !document.querySelector("#secret-dialog[open]") && !document.querySelector("#secret").value);
    const kept = [await page.locator("#secret").inputValue(), await page.evaluate(() => document.activeElement.id)];
    const row = page.locator("#keys-rows tr", { hasText: "by keyboard" });
    await row.first().waitFor();
    const created = (await rows(page, "keys")).find(([name]) => name.includes("by keyboard"));
    await tabTo(page, '[aria-label="Rotate <b>by keyboard</b> of orion"]');
    await press("Enter");
    await page.waitForSelector("#rotate-dialog[open]");
    await tabTo(page, "#rotate-dialog .main");
    await press("Enter");
    await page.waitForSelector("#secret-dialog[open]");
    const second = await page.locator("#secret").inputValue();
    await tabTo(page, "#secret-dialog .main");
    await press("Enter");
    await page.waitForFunction(() => document.querySelectorAll("#keys-rows tbody tr").length === 5);
    await tabTo(page, '#keys-rows tr:first-child [aria-label^="Revoke"]');
    await press("Enter");
    await page.waitForSelector("#revoke-dialog[open]");
    const asked = await page.locator("#revoke-dialog .about").textContent();
    await press("Escape");
    const isBack = await page.evaluate(() => document.activeElement.ariaLabel);
    await press("Enter");
    await tabTo(page, "#revoke-dialog .main");
    await press("Enter");
    await page.locator("#done", { hasText: "is revoked" }).waitFor();
    await page.waitForFunction(() => document.querySelectorAll("#keys-rows tbody tr").length === 4);
    const focused = await page.evaluate(() => document.activeElement.id);
    await tabTo(page, '#sections a[href="#tenants"]', "Shift+Tab");
    await press("Enter");
    await page.locator('[aria-label="Limits of acme"]').waitFor();
    await tabTo(page, '[aria-label="Limits of acme"]');
    await press("Enter");
    await page.waitForSelector("#limits-dialog[open]");
    await page.locator("#limits-dialog .uses li").first().waitFor();
    await tabTo(page, "#limits-dialog [name=usd_month]");
    await press(isFirefox ? "Control+a" : "Control+A");
    await page.keyboard.type("0.00001");
    const warning = await page.locator("#limits-dialog .warning").textContent();
    await press("Enter");
    await page.locator("#done", { hasText: "are set" }).waitFor();
    const done = await page.locator("#done").textContent();
    await tabTo(page, '[aria-label="Users of acme"]');
    await press("Enter");
    await page.waitForSelector("#users-dialog[open]");
    await tabTo(page, "#users-dialog [name=users]");
    await press("ArrowDown");
    await tabTo(page, "#users-dialog .main");
    await press("Enter");
    await page.locator("#done", { hasText: "The users of acme are" }).waitFor();
    const users = [await page.locator("#done").textContent(), (await rows(page, "tenants")).find(([name]) => name === "acme")[1]];
    return { first, second, isOpen, kept, created, asked, isBack, focused, warning, done, users, ...seen };
  },

  /** From a user, a day and a model to the rows of each, by clicks and with the keyboard; back; and the same address again. */
  async drill(admin) {
    const { context, page, seen } = await open({ viewport: DESKTOP });
    await enter(page, admin);
    await page.locator("#spend-rows tbody tr").first().waitFor();
    const shown = {};
    const drawn = async (hash) => {
      await page.waitForFunction((text) => decodeURIComponent(location.hash).includes(text), hash);
      await page.waitForFunction(() => !document.querySelector("#spend-rows [data-old]") && document.querySelector("#spend-rows tbody tr"));
    };
    /** Does something that leads to other rows, and returns these. */
    const after = async (hash, work) => {
      await page.evaluate(() => document.querySelectorAll("#spend-rows tr").forEach((row) => (row.dataset.old = "yes")));
      await work();
      await drawn(hash);
      return rows(page, "spend");
    };
    const first = (text) => page.locator("#spend-rows tbody th a", { hasText: text }).first();
    shown.users = await section(page, "spend?tenant=acme&by=user");
    shown.unnamed = await page.locator("#spend-rows tbody th", { hasText: "–" }).locator("a").count();
    shown.note = await page.locator("#spend-note").textContent();
    shown.models = await after("user=ann", () => first("ann").click());
    shown.fields = await page.locator("#spend-filter").evaluate((form) => Object.fromEntries(new FormData(form)));
    shown.turns = await after("by=turn", () => first("claude").click());
    shown.link = await page.locator("#spend-rows tbody th a").first().getAttribute("href");
    const { hash } = new URL(page.url());
    shown.back = await after("by=model", () => page.goBack());
    shown.backFields = await page.locator("#spend-filter").evaluate((form) => form.elements.by.value);
    shown.pairs = await section(page, "spend?tenant=acme&by=day&and=model");
    shown.headings = await page.locator("#spend-rows thead th").allTextContents();
    // Not by a download, of which WebDriver BiDi tells nothing.
    await page.evaluate(() => {
      const make = URL.createObjectURL;
      globalThis.saved = new Promise((done) => (URL.createObjectURL = (blob) => (done(blob.text()), make.call(URL, blob))));
    });
    await page.locator("#csv").click();
    shown.csv = await page.evaluate(() => globalThis.saved);
    shown.names = await page.locator("#spend-rows tbody th a").evaluateAll((links) => links.map((one) => one.ariaLabel));
    // The last bar is today's.
    const { x, y, width, height } = await page.locator("#plot svg").boundingBox();
    shown.bars = await page.locator("#plot title").allTextContents();
    const days = () => page.locator("#spend-filter").evaluate((form) => [form.elements.from.value, form.elements.to.value]);
    const [firstDay] = await days();
    await after("by=model", () => page.mouse.click(x + 3, y + height / 2));
    shown.firstDay = [firstDay, ...(await days())];
    await after("and=model", () => page.goBack());
    shown.bar = await after("by=model", () => page.mouse.click(x + width - 3, y + height / 2));
    shown.barDays = await days();
    await section(page, "spend?tenant=acme&by=user");
    await page.locator("#spend figure summary").click();
    await tabTo(page, "#days tbody tr:last-child a");
    shown.keyboard = await after("by=model", () => page.keyboard.press("Enter"));
    await section(page, "spend?tenant=acme&by=day&user=ann&model=none");
    shown.lost = await page.locator("#spend-note").textContent();
    await page.evaluate(() => (location.hash = "spend?tenant=acme&by=user&and=model&from=2026-01-01&to=2026-03-01"));
    await page.locator("#notice p").waitFor();
    shown.refused = await page.locator("#notice").innerText();
    shown.left = await page.evaluate(() => [document.querySelectorAll("#spend tr, #spend svg").length, document.querySelector("#spend-total").innerText]);
    // Another operator opens the address.
    const other = await context.newPage();
    await other.goto(`${gateway}/admin${hash}`);
    await other.waitForSelector("#login[open]");
    await enter(other, admin);
    await other.locator("#spend-rows tbody th a").first().waitFor();
    shown.shared = await rows(other, "spend");
    shown.whole = await section(page, "spend?by=tenant");
    shown.ofAll = await page.evaluate(() => [document.querySelector("#spend-only").hidden, document.querySelector("#spend-filter [name=and]").disabled]);
    return { ...shown, ...seen };
  },

  /** The rows of each grouping and each pair of a tenant, from one day to another: their sums, the total above them, and the CSV. */
  async sums(admin, tenant, from, to) {
    const { page, seen } = await open({ viewport: DESKTOP });
    await enter(page, admin);
    await page.locator("#spend-rows tbody tr").first().waitFor();
    await page.evaluate(() => {
      const make = URL.createObjectURL;
      globalThis.saved = [];
      URL.createObjectURL = (blob) => (globalThis.saved.push(blob.text()), make.call(URL, blob));
    });
    const names = ["day", "model", "key", "user", "session", "project", "metadata"];
    const pairs = names.flatMap((by, index) => names.slice(index + 1).map((and) => ({ by, and })));
    const tables = [];
    for (const groups of [...names.map((by) => ({ by })), ...pairs]) {
      await section(page, `spend?${new URLSearchParams({ tenant, from, to, ...groups })}`);
      for (let number = 0; await page.locator("#more").isVisible(); ) {
        number = await page.locator("#spend-rows tbody tr").count();
        await page.locator("#more").click();
        await page.waitForFunction((before) => document.querySelectorAll("#spend-rows tbody tr").length > before, number);
      }
      const headings = await page.locator("#spend-rows thead th").allTextContents();
      const cells = await rows(page, "spend");
      const sum = (name) => cells.reduce((all, row) => all + Number(row[headings.indexOf(name)].replaceAll(",", "")), 0);
      await page.locator("#csv").click();
      await page.waitForFunction((number) => globalThis.saved.length > number, tables.length);
      tables.push({
        groups: Object.values(groups),
        sums: [cells.length, sum("Turns"), sum("Tokens in"), sum("Tokens out")],
        total: await page.locator("#spend-total").innerText(),
        csv: await page.evaluate(() => globalThis.saved.at(-1)),
      });
    }
    return { tables, ...seen };
  },

  /** Every section on a desktop and on a phone, with axe; then each dialog. Writes pictures. */
  async states(admin, folder) {
    const axe = readFileSync(AXE, "utf8");
    const [violations, wide, shown, lines, tabs] = [[], [], {}, [], {}];
    const all = { complaints: [], elsewhere: [] };
    for (const [colorScheme, viewport] of [["light", DESKTOP], ["dark", PHONE]]) {
      const { context, page, seen } = await open({ viewport, colorScheme });
      await page.evaluate(axe);
      const size = viewport === PHONE ? "phone" : "desktop";
      const look = async (name) => {
        await page.screenshot({ path: `${folder}/admin-${name}-${colorScheme}-${size}.png` });
        if (await page.evaluate(() => document.documentElement.scrollWidth > innerWidth)) wide.push(`${name} ${size}`);
        const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
        for (const { id, nodes } of found.violations) violations.push(`${name} ${size}: ${id}: ${nodes[0].target} ${nodes[0].failureSummary}`);
      };
      await look("login");
      await enter(page, admin);
      await page.locator("#spend-rows tbody tr").first().waitFor();
      const groups = ["spend", "spend?tenant=acme&by=metadata", "spend?tenant=acme&by=user", "spend?tenant=acme&by=key", "spend?tenant=acme&by=day&and=user&user=ann", "spend?tenant=acme&by=turn", "spend?by=model", "spend?by=day"];
      for (const hash of [...groups, "tenants", "keys?state=all", "limits", "audit"]) {
        shown[hash] = await section(page, hash);
        await look(hash.replace(/\W+/g, "-"));
        lines.push(...(await page.locator(`#${hash.split("?")[0]} > .filter`).evaluateAll(unaligned)));
      }
      // The section that is shown, the last one, is in view; at the other side, links are out of view.
      const shadows = await page.locator("#sections").evaluate((one) => getComputedStyle(one).backgroundAttachment);
      const seenLinks = await page.locator("#sections a").evaluateAll((links) => links.map((link) => {
        const [at, nav] = [link, link.parentElement].map((one) => one.getBoundingClientRect());
        return at.left >= nav.left - 1 && at.right <= nav.right + 1;
      }));
      tabs[size] = [seenLinks.at(0), seenLinks.at(-1), shadows.includes("local")];
      shown.total = await page.locator("#spend-total").textContent();
      shown.bars = await page.locator("#plot rect").count();
      shown.plot = await page.locator("#plot svg").getAttribute("aria-label");
      shown.days = await page.locator("#days tbody tr").count();
      for (const [hash, button] of [["keys", "New key"], ["keys", /^Rotate/], ["keys", /^Revoke/], ["keys?q=poor", /^Budget of/], ["tenants", /^Limits of acme/], ["tenants", /^Users of acme/]]) {
        await section(page, hash);
        await page.getByRole("button", { name: button }).first().click();
        await page.waitForSelector("dialog[open]");
        await look(`dialog-${String(button).replace(/\W+/g, "-")}`);
        await page.keyboard.press("Escape");
        await page.waitForSelector("dialog[open]", { state: "detached" });
      }
      shown.made = await page.evaluate(() => document.querySelectorAll("main script, main img, main b").length);
      for (const name of ["complaints", "elsewhere"]) all[name].push(...seen[name]);
      await context.close();
    }
    // Other pages have the same header.
    const page = await browser.newPage();
    const headers = {};
    for (const path of ["/", "/ops", "/docs", "/guides", "/admin"]) {
      await page.goto(`${gateway}${path}`, { waitUntil: "domcontentloaded" });
      headers[path] = await page.locator(".site").evaluate((one) => [one.querySelector("nav").innerText.replace(/\s+/g, " "), one.querySelector("[aria-current=page]").pathname]);
    }
    return { violations, wide, shown, headers, lines, tabs, ...all };
  },

  /** Writes the picture of docs/ADMIN.md, at a `tailrace up` with a tenant `acme`: the spend of its users by model in the last week. */
  async picture(admin, path) {
    const { page } = await open({ viewport: { width: 1280, height: 780 }, colorScheme: "light" });
    await enter(page, admin);
    await page.locator("#spend-rows tbody tr").first().waitFor();
    const from = new Date(Date.now() - 6 * 86_400_000).toISOString().slice(0, 10);
    await section(page, `spend?tenant=acme&by=user&and=model&from=${from}`);
    await page.screenshot({ path });
    return { path };
  },

  /** What the page says about the server's health, until it is good. */
  async health(admin) {
    const { page, seen } = await open({ viewport: DESKTOP });
    let report = { status: "degraded", detail: "the model refuses the API key" };
    await page.route("**/health", (route) => route.fulfill({ json: report }));
    await page.reload();
    await enter(page, admin);
    await page.locator("#health p").waitFor();
    const said = await page.locator("#health").innerText();
    const link = await page.locator("#health a").evaluate((one) => one.pathname);
    report = { status: "healthy" };
    await page.reload();
    await page.locator("#spend-rows tbody tr").first().waitFor();
    return { said, link, after: await page.locator("#health").innerText(), ...seen };
  },

  /** Pages of keys; a gateway that is away and comes back; a change whose answer is lost; and the own key, which is revoked. */
  async obstacles(admin) {
    const { page, seen } = await open({ viewport: DESKTOP });
    await enter(page, admin);
    const counts = [(await section(page, "keys")).length];
    while (await page.locator("#more").isVisible()) {
      const before = counts.at(-1);
      await page.locator("#more").click();
      await page.waitForFunction((number) => document.querySelectorAll("#keys-rows tbody tr").length > number, before);
      counts.push((await rows(page, "keys")).length);
    }
    const found = await section(page, "keys?q=key%207");
    await page.route("**/v1/admin/**", (route) => route.abort());
    await page.locator('#sections a[href="#tenants"]').click();
    await page.locator("#notice p").waitFor();
    const away = await page.locator("#notice").innerText();
    await page.unroute("**/v1/admin/**");
    await page.locator("#tenants-rows tbody tr").first().waitFor();
    await page.locator("#notice p").waitFor({ state: "detached" });
    await section(page, "keys?q=key%207");
        await page.locator("#new-key").click();
    await page.locator("#key-dialog [name=tenant]").fill("Not A Name");
    await page.keyboard.press("Enter");
    const isRefused = await page.locator("#key-dialog [name=tenant]").evaluate((one) => one.validity.patternMismatch);
    await page.keyboard.press("Escape");
    await page.waitForSelector("#key-dialog[open]", { state: "detached" });
    // The request arrives, and its answer is lost.
    const headers = { authorization: `Bearer ${admin}`, "content-type": "application/json" };
    await page.route("**/v1/admin/keys", async (route) => {
      // Not by Playwright, which does not know the body in Firefox.
      await fetch(`${gateway}/v1/admin/keys`, { method: "POST", headers, body: JSON.stringify({ tenant: "acme", name: "lost" }) });
      await route.abort();
    });
    await page.locator("#new-key").click();
    await page.locator("#key-dialog [name=tenant]").fill("acme");
    await page.locator("#key-dialog [name=name]").fill("lost");
    await page.keyboard.press("Enter");
    await page.locator("#key-dialog .problem:not(:empty)").waitFor();
    const lost = await page.locator("#key-dialog .problem").textContent();
    await page.unroute("**/v1/admin/keys");
    // Another operator revokes the key of this page.
    const status = () => page.evaluate(async () => (await fetch("/v1/limits", { headers: { authorization: `Bearer ${sessionStorage.getItem("tailrace-admin-key")}` } })).status);
    while ((await status()) !== 401) await page.waitForTimeout(200);
    await page.locator('#sections a[href="#audit"]').evaluate((link) => link.click());
    await page.waitForSelector("#login[open]");
    return { counts, found: found.map(([name]) => name.split("\n")[0]), away, lost, isRefused, said: await page.locator("#refusal").textContent(), ...seen };
  },
};

for (const name of steps.split(",")) console.log(JSON.stringify(await STEPS[name](...given)));
await browser.close();
