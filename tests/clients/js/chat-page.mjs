// The page at / in Chromium or Firefox: `chat-page.mjs STEPS GATEWAY …`, STEPS is a name or several with commas between
// them. Prints one line for each, with what the page showed.
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { setTimeout } from "node:timers/promises";
import { chromium } from "playwright-core";
import { closeOffline, isFirefox, launch, watch } from "./browsers.mjs";

const [steps, gateway, ...given] = process.argv.slice(2);
// `small` has the layout of a desktop. Chromium draws each frame with the CPU, in a third of the time for `desktop`.
const SIZES = { desktop: { width: 1280, height: 860 }, phone: { width: 390, height: 844 }, narrow: { width: 780, height: 860 }, small: { width: 900, height: 400 } };
// Each colour scheme and each size once.
const LOOKS = [["light", "desktop"], ["dark", "phone"]];
const browser = await launch();

/** Opens a page that is watched. */
async function open(options) {
  // An animation draws each frame anew, without a graphics card: that took a sixth of the CPU time.
  const context = await browser.newContext({ reducedMotion: "reduce", ...options });
  const page = await context.newPage();
  return { context, page, seen: watch(page, gateway) };
}

/** Returns a promise with the function that resolves it. */
function deferred() {
  const made = {};
  made.promise = new Promise((resolve) => (made.resolve = resolve));
  return made;
}

const text = (page) => page.locator(".answer .text").last().textContent();
const longer = (page, chars) => page.waitForFunction((chars) => document.querySelector(".answer .text")?.textContent.length > chars, chars);
const marked = (page, state) => page.waitForFunction((state) => document.querySelector("#mark").textContent === state, state);

/** Returns what the page of a turn shows, after a replay that was begun, stopped and moved with the keyboard. */
async function replayed(page, shoot) {
  const shown = async () => (await page.locator("#text").textContent()).trim();
  await page.locator("#steps tbody tr").first().waitFor();
  await page.waitForFunction(() => document.querySelector("#text").textContent.length > 0);
  const whole = await shown();
  for (const [colorScheme, size] of LOOKS) {
    await page.emulateMedia({ colorScheme });
    await page.setViewportSize(SIZES[size]);
    await shoot(`${colorScheme}-${size}`);
  }
  const isWide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
  /** Returns how many milliseconds of the turn are replayed in each millisecond, at a speed of the list. */
  const pace = (speed) =>
    page.evaluate(async (speed) => {
      const [play, list, position] = ["play", "speed", "position"].map((id) => document.getElementById(id));
      list.value = speed;
      position.value = 0;
      position.dispatchEvent(new Event("input"));
      play.click();
      const began = performance.now();
      while (performance.now() - began < 400) await new Promise(requestAnimationFrame);
      play.click();
      return Number(position.value) / (performance.now() - began);
    }, speed);
  const paces = [await pace("0.25"), await pace("1")];
  await page.locator("#speed").selectOption("4");
  await page.locator("#play").focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction((length) => ((now) => now > 0 && now < length)(document.querySelector("#text").textContent.length), whole.length);
  await page.keyboard.press("Enter");
  const paused = await shown();
  await page.keyboard.press("Tab");
  await page.keyboard.press("End");
  const steps = await page.locator("#steps td:last-child").allTextContents();
  return { whole, isPart: whole.startsWith(paused) && paused.length < whole.length, isBack: (await shown()) === whole, steps, isWide, paces };
}

const AXE = new URL("node_modules/axe-core/axe.min.js", import.meta.url);
const press = (page, name) => page.getByRole("button", { name, exact: true }).first().click();

async function ask(page, line) {
  await page.getByLabel("Question").fill(line);
  await page.keyboard.press("Enter");
}

/** Returns the properties of animations without an end. Runs in the page. */
const endlesslyAnimated = () =>
  document.getAnimations().flatMap(({ effect }) => {
    if (Number.isFinite(effect.getTiming().iterations)) return [];
    return effect.getKeyframes().flatMap((frame) => Object.keys(frame).filter((name) => !/offset|easing|composite/i.test(name)));
  });

let chatOfStates = `${gateway}/`;

/** Each state of the pages, and what brings it about. `locked`: a gateway that needs a key. */
const STATES = {
  welcome: (page) => page.goto(`${gateway}/`),
  /** Asks once: the states that follow open the same chat. */
  async answered(page) {
    await page.goto(chatOfStates);
    if (chatOfStates.endsWith("/")) await ask(page, "Show me a table, a list and some code.");
    await page.waitForSelector(".meta");
    chatOfStates = page.url();
  },
  async settings(page) {
    await STATES.welcome(page);
    await page.waitForFunction(() => document.querySelectorAll("#model option").length > 1);
    await page.locator("#setup").click();
  },
  async renaming(page) {
    await STATES.answered(page);
    await page.evaluate(() => document.querySelector("#sessions .current .act").click());
  },
  async refused(page) {
    await STATES.welcome(page);
    await page.locator("#picker").setInputFiles([
      { name: "river.png", mimeType: "image/png", buffer: Buffer.from(PIXEL, "base64") },
      { name: "notes.exe", mimeType: "application/x-msdownload", buffer: Buffer.from("MZ") },
    ]);
    await page.waitForSelector("#notice:visible");
  },
  async demo(page) {
    await STATES.welcome(page);
    await page.evaluate(() => document.querySelector("#demo-open").click());
    await page.waitForSelector("#demo:visible");
  },
  async reference(page) {
    await page.goto(`${gateway}/docs`);
    await page.locator("summary").first().click();
  },
  guides: (page) => page.goto(`${gateway}/guides`),
  guide: (page) => page.goto(`${gateway}/guides/API`),
  "guide-tables": (page) => page.goto(`${gateway}/guides/COMMAND_LINE`),
  "guides-found": (page) => page.goto(`${gateway}/guides?q=cursor`),
  async ops(page) {
    await page.goto(`${gateway}/ops`);
    await page.waitForSelector("tbody tr");
  },
  async running(page) {
    await page.goto(`${gateway}/`);
    await ask(page, "Count.\n#sim words=2000 rate=20");
    await longer(page, 80);
  },
  /** The function that the first page offers. */
  async chip(page) {
    await STATES.welcome(page);
    await page.locator("#examples button", { hasText: "Python" }).click();
    await page.locator("#title", { hasText: /sorted lists, with\u2026$/ }).waitFor();
    await page.waitForSelector(".meta");
  },
  /** A question that waits for the end of the answer before it. */
  async queued(page) {
    await STATES.running(page);
    await ask(page, "And what comes after two thousand?");
    await page.getByRole("button", { name: "Take back" }).waitFor();
  },
  /** A message that can be put into the answer that runs. */
  async steering(page) {
    await STATES.running(page);
    await page.getByLabel("Question").fill("Only the even numbers, please.");
    await page.getByRole("button", { name: "Change the answer" }).waitFor();
  },
  /** The second of two answers to a question, of another model. */
  async retried(page) {
    await page.goto(`${gateway}/`);
    await ask(page, "Count.\n#sim words=60 rate=0");
    await page.waitForSelector(".meta");
    await page.getByLabel("Try again with").selectOption({ label: "Claude Haiku 5.5" });
    await page.waitForFunction(() => document.querySelector(".branches")?.textContent.includes("2 / 2") && document.querySelector(".meta"));
  },
  /** The timeline of an answer that is written: the question, and the text as it grows. */
  async "turn-running"(page) {
    await STATES.running(page);
    await page.goto(new URL(await page.getByRole("link", { name: "Timeline" }).getAttribute("href"), page.url()).href);
    const grown = (word) => page.waitForFunction((word) => document.querySelector("#text").textContent.includes(word), word);
    await page.locator("#asked", { hasText: "Count." }).waitFor();
    await grown("w000020");
    await grown("w000040");
  },
  /** Escape ends the answer. Two chats have its question as their title, and the list shows when each began. */
  async stopped(page) {
    await STATES.running(page);
    await page.keyboard.press("Escape");
    await page.waitForSelector(".meta:has-text('stopped')");
    await page.waitForFunction(() => [...document.querySelectorAll("#sessions a")].filter(({ title }) => /^Count\. \u00b7 .*\d+:\d\d/.test(title)).length > 1);
  },
  async failed(page) {
    await page.goto(`${gateway}/`);
    await ask(page, "Count.\n#sim words=40 rate=0 fault=500@25+");
    await page.waitForSelector(".failure:visible");
  },
  /** The mark stays, for its picture. */
  async "caught-up"(page) {
    await page.addInitScript((shownMs) => {
      const { setTimeout } = globalThis;
      globalThis.setTimeout = (work, ms, ...given) => (ms === shownMs ? 0 : setTimeout(work, ms, ...given));
    }, 2500);
    await STATES.lost(page);
    await page.context().setOffline(false);
    await marked(page, "caught up");
  },
  async lost(page) {
    await STATES.running(page);
    await page.context().setOffline(true);
    await marked(page, "reconnecting");
  },
  async turn(page) {
    await STATES.answered(page);
    await page.getByRole("link", { name: "Timeline" }).click();
    await page.waitForSelector("#steps tbody tr");
  },
  /** A question that is edited, after an answer with thinking and a tool call. */
  async editing(page) {
    await page.goto(`${gateway}/`);
    await ask(page, 'What is this?\n#sim words=30 thinking=20 tool=look json={"at":"river"} rate=0');
    await page.waitForSelector(".meta");
    for (const summary of await page.locator("summary").all()) await summary.click();
    await page.locator(".question").hover();
    await press(page, "Edit");
  },
  async shared(page) {
    await STATES.answered(page);
    const turn = (await page.getByRole("link", { name: "Timeline" }).getAttribute("href")).split("/").at(-1);
    const body = '{"is_shared": true, "life_s": 600}';
    const init = { method: "POST", headers: { "content-type": "application/json" }, body };
    const { ticket, until } = await (await fetch(`${gateway}/v1/turns/${turn}/tickets`, init)).json();
    await page.goto("about:blank");
    await page.goto(`${gateway}/#${new URLSearchParams({ shared: turn, ticket, until, asked: "Show me a table, a list and some code." })}`);
    await page.waitForSelector(".answer .acts button");
  },
  async drawer(page) {
    await STATES.answered(page);
    await page.keyboard.press("Control+k");
  },
};
const PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";

const OFFLINE_MS = 5000;

/** Stops the browser as a laptop that sleeps does, says so with a session `asleep`, and goes on when there is one `awake`. */
async function sleep() {
  const { processInfo } = await (await browser.newBrowserCDPSession()).send("SystemInfo.getProcessInfo");
  const signal = (name) => processInfo.forEach(({ id }) => process.kill(id, name));
  signal("SIGSTOP");
  const headers = { "content-type": "application/json" };
  // The test cuts the connections once it sees this session, which may be before the response has arrived.
  await fetch(`${gateway}/v1/sessions`, { method: "POST", headers, body: '{"id": "asleep"}' }).catch(() => {});
  const isAwake = () => fetch(`${gateway}/v1/sessions/awake`).then(({ ok }) => ok, () => false);
  while (!(await isAwake())) await setTimeout(100);
  signal("SIGCONT");
}

/** Asks with another model and a system prompt, and then with others, also after a reload. Returns those of each request. */
async function choose() {
  const { context, page } = await open({ viewport: SIZES.small });
  const asked = [];
  page.on("request", (request) => {
    if (request.method() !== "POST" || !request.url().endsWith("/v1/turns")) return;
    const { model, system } = request.postDataJSON();
    asked.push([model, system]);
  });
  const answered = async (count) => {
    await ask(page, "Who?\n#sim words=1 rate=0");
    await page.waitForFunction((count) => document.querySelectorAll(".meta").length === count, count);
  };
  const set = async (name, prompt) => {
    await page.locator("#setup").click();
    await page.getByLabel("Model").selectOption({ label: name });
    await page.getByLabel("System prompt").fill(prompt);
    await press(page, "Use from now on");
  };
  await page.goto(gateway);
  await page.waitForFunction(() => document.querySelectorAll("#model option").length > 1);
  await set("Claude Haiku 5.5", "Be brief.");
  await answered(1);
  const changed = page.waitForResponse((response) => response.request().method() === "PATCH");
  await set("Claude Opus 5.5", "Be kind and honest.");
  await changed;
  await page.reload();
  await page.waitForSelector(".meta");
  await answered(2);
  const setup = await page.locator("#setup").textContent();
  await set("Claude Sonnet 5.5", "");
  await answered(3);
  const figures = await page.locator(".meta").evaluateAll((all) => all.map((one) => [one.title.split(". ")[1].split(",")[0], one.textContent.split(" ")[0]]));
  await context.close();
  return { asked, figures, setup };
}

/** Presses Tab until the focused element is named `name`. */
async function tabTo(page, name) {
  for (let presses = 0; presses < 60; presses += 1) {
    const focused = await page.evaluate(() => document.activeElement.ariaLabel || document.activeElement.textContent || document.activeElement.id);
    if (focused.trim() === name) return;
    await page.keyboard.press("Tab");
  }
  throw new Error(`Tab does not reach ${name}`);
}

/** Gives files to the page as a person does who drops or pastes them: `kind` is `drop` or `paste`. The first file may be one
 * of the element `#given`. `isAsked`: sends the question at once, before the page can have read them. */
const give = (page, kind, files, isAsked = false) =>
  page.evaluate(
    ([kind, files, isAsked]) => {
      const given = new DataTransfer();
      for (const file of document.querySelector("#given")?.files ?? []) given.items.add(file);
      for (const { name, type, base64, bytes } of files) {
        const content = base64 ? Uint8Array.from(atob(base64), (one) => one.charCodeAt(0)) : new Uint8Array(bytes);
        given.items.add(new File([content], name, { type }));
      }
      const options = { bubbles: true, cancelable: true };
      const event = kind === "drop" ? new DragEvent("drop", { ...options, dataTransfer: given }) : new ClipboardEvent("paste", { ...options, clipboardData: given });
      document.querySelector("#question").dispatchEvent(event);
      if (isAsked) document.querySelector("#composer").requestSubmit();
    },
    [kind, files, isAsked],
  );

const STEPS = {
  /** Asks without a network, and closes the page. The next one asks the question; the server refuses that of a deleted chat. */
  async unsent(line, late) {
    const { context, page, seen } = await open({ viewport: SIZES.small });
    const isKept = (page) =>
      page.waitForFunction(async () => {
        const result = (request) => new Promise((resolve) => (request.onsuccess = () => resolve(request.result)));
        const database = await result(indexedDB.open("tailrace", 1));
        const count = await result(database.transaction("messages").objectStore("messages").count());
        database.close();
        return count === 1;
      });
    const askWithout = async (page, line) => {
      await context.setOffline(true);
      await ask(page, line);
      await isKept(page);
      await closeOffline(page);
      await context.setOffline(false);
    };
    await page.goto(`${gateway}/`);
    await ask(page, "Hello.");
    await page.waitForSelector(".meta");
    const address = page.url();
    await askWithout(page, line);
    const tabs = [await context.newPage(), await context.newPage()];
    const shows = (tab, count) => tab.waitForFunction((count) => document.querySelectorAll(".meta").length === count, count);
    // One has read its turns, and has no outbox before it has the list of chats, when the other has sent the question.
    const listed = deferred();
    await tabs[1].route("**/v1/sessions?*", (route) => listed.promise.then(() => route.continue()));
    await tabs[1].goto(address);
    await shows(tabs[1], 1);
    await tabs[0].goto(address);
    await shows(tabs[0], 2);
    listed.resolve();
    await shows(tabs[1], 2);
    const said = await tabs[0].locator(".said").allTextContents();
    await askWithout(tabs[0], late);
    await tabs[1].close();
    await fetch(`${gateway}/v1/sessions/${address.split("#")[1]}`, { method: "DELETE" });
    const last = await context.newPage();
    await last.goto(`${gateway}/`);
    await last.locator("#notice.bad").waitFor();
    const refused = await last.locator("#notice").textContent();
    await last.reload();
    await last.waitForFunction(() => document.querySelector("#model option"));
    return { said, refused, again: await last.locator("#notice").textContent(), ...seen };
  },

  /** Asks, stops, edits the title, searches and begins a new chat with the keyboard alone. Then measures a long answer. */
  async keyboard() {
    const { page, seen } = await open({ viewport: SIZES.small });
    await page.goto(gateway);
    await page.waitForFunction(() => document.activeElement.id === "question");
    const firstPaint = await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime);
    const bytes = await page.evaluate(() => performance.getEntries().reduce((sum, { encodedBodySize = 0 }) => sum + encodedBodySize, 0));
    await page.keyboard.type("Count first.");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("#sim words=4000 rate=20");
    await page.keyboard.press("Enter");
    await longer(page, 80);
    await tabTo(page, "Stop");
    await page.keyboard.press("Enter");
    await page.waitForSelector(".meta:has-text('stopped')");
    await page.keyboard.press("Control+k");
    await page.keyboard.type("count f");
    await tabTo(page, "Rename Count first.");
    await page.keyboard.press("Enter");
    await page.keyboard.press("Control+a");
    await page.keyboard.type("Rivers");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#title").textContent === "Rivers");
    await page.waitForFunction(() => !document.querySelector("#asking").open);
    await page.keyboard.press("Control+k");
    await page.keyboard.press("Control+a");
    await page.keyboard.type("w000005");
    await page.waitForFunction(() => document.querySelector("#sessions").innerText.startsWith("In questions and answers\n"));
    const foundInText = await page.locator("#sessions a", { hasText: "Rivers" }).innerText();
    await page.keyboard.press("Control+a");
    await page.keyboard.type("nowhere");
    await page.waitForSelector("#sessions:has-text('No chats found.')");
    await page.route("**/v1/turns?*", (route) => route.fulfill({ status: 503, json: { error: { message: "busy" } } }));
    await page.keyboard.type("else");
    await page.waitForSelector("#sessions:has-text('could not be searched')");
    await page.unroute("**/v1/turns?*");
    await page.keyboard.press("Control+Shift+o");
    await page.waitForFunction(() => document.activeElement.id === "question" && !location.hash);
    await browser.startTracing(page, { categories: ["toplevel"] });
    await page.keyboard.type("Count again.");
    await page.keyboard.press("Shift+Enter");
    await page.keyboard.type("#sim words=5000 rate=400");
    await page.evaluate(() => {
      const asked = performance.now();
      globalThis.firstToken = new Promise((resolve) => {
        const look = (_, observer) => document.querySelector(".answer .text")?.textContent && (observer.disconnect(), resolve(performance.now() - asked));
        new MutationObserver(look).observe(document.querySelector("#turns"), { childList: true, characterData: true, subtree: true });
      });
    });
    await page.keyboard.press("Enter");
    const firstToken = await page.evaluate(() => globalThis.firstToken);
    await page.waitForSelector(".meta");
    // The thread's time, which other processes of a busy machine do not lengthen.
    const { traceEvents } = JSON.parse(await browser.stopTracing());
    const main = new Set(traceEvents.filter(({ name, args }) => name === "thread_name" && args.name === "CrRendererMain").map(({ pid, tid }) => `${pid} ${tid}`));
    const tasks = traceEvents.filter(({ ph, pid, tid }) => ph === "X" && main.has(`${pid} ${tid}`));
    const longTasks = tasks.map(({ tdur = 0 }) => Math.round(tdur / 1000)).filter((ms) => ms > 50);
    const longest = Math.max(...tasks.map(({ tdur = 0 }) => tdur / 1000));
    const pages = (await page.pdf()).toString("latin1").match(/\/Type \/Page\b/g).length;
    return { text: (await text(page)).trim(), foundInText, pages, longTasks, longest, tasks: tasks.length, firstPaint, firstToken, bytes, ...seen };
  },

  /** Returns which control has the focus after shortcuts, another branch, a new list and a rename; and what the dialog for the
   * title of one of two chats with the same title contains. A key of an input method sends no question, and one Escape stops
   * the answer in a wide window, also after a search. */
  async focus() {
    const { page, seen } = await open({ viewport: SIZES.phone, reducedMotion: "no-preference" });
    const focused = () => page.evaluate(() => document.activeElement.ariaLabel || document.activeElement.textContent);
    await page.goto(gateway);
    await page.waitForFunction(() => document.activeElement.id === "question");
    await page.keyboard.press("Control+k");
    const found = [await focused()];
    await page.keyboard.press("Escape");
    await page.setViewportSize(SIZES.small);
    await page.getByLabel("Question").fill("Same.\n#sim words=4000 rate=20");
    await page.getByLabel("Question").dispatchEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true });
    await page.evaluate(() => new Promise(requestAnimationFrame));
    const isKept = (await page.getByLabel("Question").inputValue()) !== "";
    await page.getByLabel("Question").press("Enter");
    await longer(page, 20);
    await page.keyboard.press("Control+k");
    await page.getByLabel("Question").press("Escape");
    await page.waitForSelector(".meta:has-text('stopped')");
    await page.locator(".question").hover();
    await press(page, "Edit");
    await page.waitForFunction(() => document.querySelector("#question").value);
    await ask(page, "Same.\n#sim words=1 rate=0");
    await page.waitForFunction(() => document.querySelector(".branches").textContent.includes("2 / 2") && document.querySelector(".meta"));
    await page.getByRole("button", { name: "Earlier branch" }).press("Enter");
    found.push(await focused());
    await fetch(`${gateway}/v1/sessions`, { method: "POST", headers: { "content-type": "application/json" }, body: '{"title": "Same."}' });
    await page.locator("#sessions .current a").focus();
    await page.keyboard.press("Tab");
    const line = await page.locator("#sessions .current").elementHandle();
    await page.evaluate(() => new BroadcastChannel("tailrace").postMessage(null));
    await page.waitForFunction((line) => !line.isConnected, line);
    found.push(await focused());
    await page.keyboard.press("Enter");
    const title = await page.locator("#asking-input").inputValue();
    await page.locator("#asking-input").fill("Other");
    await page.keyboard.press("Enter");
    await page.waitForFunction(() => document.querySelector("#sessions .current span").textContent === "Other");
    found.push(await focused());
    const groups = await page.locator("#turns").ariaSnapshot();
    return { found, isKept, title, groups: groups.match(/group "\w+"/g), ...seen };
  },

  /** Drops a picture and pastes a PDF with a question; a file that is too large, of another type or deleted is refused before
   * it is sent. Edits the question, which is refused and sent again. Then opens a new chat, and waits until no URL keeps a
   * picture in memory. The title would end with half of an emoji. */
  async files(pdf) {
    const { page, seen } = await open({ viewport: SIZES.small });
    const sent = [];
    await page.addInitScript(() => {
      const [urls, { createObjectURL, revokeObjectURL }] = [(globalThis.urls = new Set()), URL];
      URL.createObjectURL = (blob) => ((url) => (urls.add(url), url))(createObjectURL(blob));
      URL.revokeObjectURL = (url) => (urls.delete(url), revokeObjectURL(url));
    });
    page.on("request", (request) => request.method() === "POST" && sent.push(request.url().replace(gateway, "")));
    await page.goto(gateway);
    const said = async () => (await page.waitForFunction(() => !document.querySelector("#notice").hidden), page.locator("#notice").textContent());
    // Cells of a table, which Excel also copies as a picture.
    const isPastedAsText = await page.evaluate(() => {
      const given = new DataTransfer();
      given.setData("text/plain", "a\tb");
      given.setData("text/html", "<table><tr><td>a<td>b</table>");
      given.items.add(new File(["x"], "image.png", { type: "image/png" }));
      const event = new ClipboardEvent("paste", { bubbles: true, cancelable: true, clipboardData: given });
      document.querySelector("#question").dispatchEvent(event);
      return !event.defaultPrevented;
    });
    const refused = [];
    await give(page, "drop", [{ name: "notes.exe", type: "application/x-msdownload", bytes: 10 }]);
    refused.push(await said());
    await give(page, "paste", [{ name: "huge.png", type: "image/png", bytes: 20_000_001 }]);
    await page.waitForFunction(() => document.querySelector("#notice").textContent.includes("huge"));
    refused.push(await said());
    const sentBefore = [...sent];
    const folder = mkdtempSync(`${tmpdir()}/page-`);
    writeFileSync(`${folder}/gone.png`, "");
    await page.evaluate(() => document.body.append(Object.assign(document.createElement("input"), { type: "file", id: "given" })));
    await page.locator("#given").setInputFiles(`${folder}/gone.png`);
    rmSync(folder, { recursive: true });
    const hostile = "<img src=x onerror=globalThis.ran=1>.png";
    await give(page, "drop", [{ name: hostile, type: "image/png", base64: PIXEL }]);
    await page.locator("#files li").waitFor();
    refused.push(await said());
    await page.evaluate(() => document.querySelector("#given").remove());
    const isText = (await page.locator("#files span").first().textContent()) === hostile && !(await page.evaluate(() => globalThis.ran));
    const asked = page.waitForRequest((request) => request.url() === `${gateway}/v1/turns` && request.method() === "POST");
    await page.getByLabel("Question").fill(`${"What-are-these?".padEnd(58, "-")}\u{1f30a}\u{1f30a}\n#sim words=5 rate=0`);
    await give(page, "paste", [{ name: "river.pdf", type: "application/pdf", base64: pdf }], true);
    const { messages } = (await asked).postDataJSON();
    await page.waitForSelector(".meta");
    const picture = await page.waitForFunction(() => document.querySelector(".question img")?.naturalWidth);
    const answer = (await text(page)).trim();
    const { title } = await (await fetch(`${gateway}/v1/sessions/${new URL(page.url()).hash.slice(1)}`)).json();
    const drafted = (count) => page.waitForFunction((count) => document.querySelectorAll("#files li").length === count, count);
    const edit = async () => {
      await page.locator(".question").hover();
      await press(page, "Edit");
      await drafted(2);
    };
    await edit();
    await page.keyboard.press("Escape");
    await drafted(0);
    await edit();
    await page.route(/\/v1\/turns$/, (route) => route.fulfill({ status: 402, json: { error: { message: "no budget" } } }));
    await ask(page, "And these?\n#sim words=5 rate=0");
    await page.locator("#notice", { hasText: "no budget" }).waitFor();
    await drafted(2);
    await page.unrouteAll();
    const again = page.waitForRequest((request) => request.url() === `${gateway}/v1/turns` && request.method() === "POST");
    await page.keyboard.press("Enter");
    const edited = (await again).postDataJSON().messages;
    await page.waitForSelector(".meta");
    await page.locator("#new").click();
    await page.waitForFunction(() => !globalThis.urls.size);
    const kinds = [messages, edited].map(([{ content }]) => content.map((block) => block.source?.media_type ?? block.type));
    return { refused, isText, isPastedAsText, sentBefore, kinds, title, width: await picture.jsonValue(), answer, ...seen };
  },

  /** Asks a question while the first request for the list of chats, and the first for the answer's record, is lost. The second
   * response with the record ends in the middle. */
  async lost() {
    const { page, seen } = await open({ viewport: SIZES.small });
    await page.goto(gateway);
    await page.waitForFunction(() => document.querySelector("#setup").textContent !== "Model");
    const lost = [];
    const server = createServer((_, response) => {
      lost.push("half");
      response.writeHead(200, { "content-type": "application/json", "content-length": 100 });
      response.write('{"turn": "', () => response.destroy());
    });
    await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
    await page.route(/\/v1\/(sessions\?limit=50|turns\/[^/]+)$/, (route) => {
      const { pathname } = new URL(route.request().url());
      const kind = pathname.split("/")[2];
      if (route.request().method() !== "GET") return route.continue();
      if (kind === "turns" && lost.includes(kind) && !lost.includes("half")) return route.continue({ url: `http://127.0.0.1:${server.address().port}${pathname}` });
      if (lost.includes(kind)) return route.continue();
      lost.push(kind);
      return route.abort();
    });
    await ask(page, "Count.\n#sim words=9 rate=30");
    await page.waitForSelector(".meta");
    await page.waitForSelector("#sessions .current");
    server.close();
    const failures = await page.locator(".failed, #notice:visible").allTextContents();
    return { text: (await text(page)).trim(), lost, failures, ...seen };
  },

  /** Asks in a new chat whose requests are refused, and again; renames and deletes it in vain. Stops an answer before its
   * question is sent. Opens another chat while the server has not yet accepted a question, and while it has not yet sent a file
   * of one. */
  async unaccepted(pdf) {
    const { page, seen } = await open({ viewport: SIZES.small });
    const asked = [];
    page.on("request", (request) => {
      if (request.method() === "POST" && request.url() === `${gateway}/v1/turns`) asked.push(request.postDataJSON());
    });
    const refuse = (pattern, methods) =>
      page.route(pattern, (route) => {
        const method = route.request().method();
        const refusal = { status: 429, headers: { "retry-after": "60" }, json: { error: { message: `no ${method}` } } };
        return methods.includes(method) ? route.fulfill(refusal) : route.continue();
      });
    /** Holds the responses for `pattern`; returns what lets them pass. */
    const hold = async (pattern) => {
      let pass;
      const held = new Promise((resolve) => (pass = resolve));
      await page.route(pattern, async (route) => (await held, route.fallback()));
      return pass;
    };
    const noticed = (words) => page.locator("#notice", { hasText: words }).waitFor();
    const newChat = async () => {
      await page.locator("#new").click();
      await page.locator("#welcome").waitFor();
    };
    await page.goto(gateway);
    await page.waitForFunction(() => document.querySelector("#setup").textContent !== "Model");

    await refuse(/\/v1\/(sessions|turns)$/, ["POST"]);
    await ask(page, "Refused?\n#sim words=3 rate=0");
    await noticed("no POST");
    await page.unrouteAll();
    await page.keyboard.press("Enter");
    await page.waitForSelector(".meta");
    const second = (await text(page)).trim();

    await refuse(/\/v1\/sessions\/[^/]+$/, ["PATCH", "DELETE"]);
    await page.locator("#sessions .current").hover();
    await page.locator("#sessions .current .act").first().click();
    await page.locator("#asking-input").fill("Renamed");
    await page.keyboard.press("Enter");
    await noticed("no PATCH");
    await page.locator("#sessions .current").hover();
    await page.locator("#sessions .current .act").last().click();
    await page.locator("#asking-yes").click();
    await noticed("no DELETE");
    const kept = [await page.locator("#notice:visible").textContent(), await page.locator("#title").textContent(), await page.locator(".meta").count()];
    await page.unrouteAll();

    // The list of chats that the first change reads comes after that of the second one.
    const [lists, older, late] = [/\/v1\/sessions\?limit/, deferred(), deferred()];
    const holdList = async (route) => {
      const response = await route.fetch();
      older.resolve();
      await late.promise;
      await route.fulfill({ response });
    };
    await page.route(lists, holdList, { times: 1 });
    const rename = async (title) => {
      await page.locator("#sessions .current").hover();
      await page.locator("#sessions .current .act").first().click();
      await page.locator("#asking-input").fill(title);
      await page.keyboard.press("Enter");
    };
    await rename("Older");
    await older.promise;
    await rename("Newer");
    await page.locator("#sessions .current .title", { hasText: "Newer" }).waitFor();
    const arriving = page.waitForResponse(lists);
    late.resolve();
    await (await arriving).finished();
    await page.evaluate(() => new Promise((wake) => setTimeout(wake, 100)));
    const listed = await page.locator("#sessions .current .title").textContent();

    await newChat();
    const create = await hold(/\/v1\/sessions$/);
    await ask(page, "Stopped.\n#sim words=4000 rate=20");
    await page.locator(".turn").waitFor();
    await page.keyboard.press("Escape");
    create();
    await page.waitForSelector(".meta:has-text('stopped')");
    await page.unrouteAll();

    /** Opens a new chat before the server has answered the request for the session of another new one. */
    const leave = async (line) => {
      await newChat();
      const pass = await hold(/\/v1\/sessions$/);
      await ask(page, line);
      await page.locator(".turn").waitFor();
      const session = new URL(page.url()).hash.slice(1);
      await newChat();
      pass();
      return session;
    };
    const session = await leave("Left behind.\n#sim words=4 rate=0");
    await page.getByRole("link", { name: "Left behind." }).waitFor();
    let left;
    do {
      await setTimeout(50);
      [left] = (await (await fetch(`${gateway}/v1/sessions/${session}/turns`)).json()).turns;
    } while (left?.outcome !== "completed");
    await page.unrouteAll();
    await refuse(/\/v1\/turns$/, ["POST"]);
    await leave("Never accepted.");
    await noticed("no POST");
    const notice = await page.locator("#notice").textContent();
    await page.unrouteAll();

    await newChat();
    // So long that it is stored beside the log.
    const long = Buffer.concat([Buffer.from(pdf, "base64"), Buffer.alloc(80_000)]).toString("base64");
    await give(page, "drop", [{ name: "long.pdf", type: "application/pdf", base64: long }]);
    await page.locator("#files li").waitFor();
    await ask(page, "A file?\n#sim words=1 rate=0");
    await page.waitForSelector(".meta");
    const pass = await hold(/\/v1\/blobs\//);
    const reading = page.waitForResponse(/\/v1\/blobs\//);
    await press(page, "Try again");
    await newChat();
    pass();
    await (await reading).finished();
    await ask(page, "The last one.\n#sim words=1 rate=0");
    await page.waitForSelector(".meta");
    const shown = await page.locator(".said").allTextContents();
    const texts = asked.map(({ messages: [{ content }] }) => (typeof content === "string" ? content : content.at(-1).text).split("\n")[0]);
    return { second, kept, listed, left: left.text, notice, shown, asked: texts, ...seen };
  },

  /** Asks in a chat of another client whose turns cannot be read: the first request is refused, the next two, after the
   * question, are lost, and the last one is slow. Saves its settings unchanged. Shows, copies and edits its first question,
   * which is stored beside the log, and asks that again with a double click. */
  async continued(session) {
    const { context, page, seen } = await open({ viewport: SIZES.small });
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    const asked = [];
    page.on("request", (request) => request.method() === "POST" && request.url() === `${gateway}/v1/turns` && asked.push(request.postDataJSON()));
    let [pass, requests] = [null, 0];
    const held = new Promise((resolve) => (pass = resolve));
    await page.route(/order=desc/, async (route) => {
      requests += 1;
      if (requests === 1) return route.fulfill({ status: 500, json: { error: { message: "broken" } } });
      if (requests < 4) return route.abort();
      await held;
      await route.continue();
    });
    await page.goto(`${gateway}/#${session}`);
    const notice = (words) => page.locator("#notice", { hasText: words });
    await notice("broken").waitFor();
    const said = await page.evaluateHandle(() => {
      const [all, shown] = [[], document.querySelector("#notice")];
      new MutationObserver(() => all.push(shown.textContent)).observe(shown, { childList: true });
      return all;
    });
    await ask(page, "And then?\n#sim words=1 rate=0");
    await notice("cannot be reached").waitFor();
    pass();
    await page.waitForFunction(() => document.querySelectorAll(".meta").length === 2);
    await notice("cannot be reached").waitFor({ state: "hidden" });
    const notices = (await said.jsonValue()).filter(Boolean).length;
    await page.locator("#setup").click();
    const settings = [await page.getByLabel("Model").inputValue(), await page.getByLabel("System prompt").inputValue()];
    const changing = page.waitForRequest((request) => request.method() === "PATCH");
    await press(page, "Use from now on");
    const changed = (await changing).postDataJSON();
    const shown = await page.locator(".said").first().textContent();
    await page.locator(".question").first().hover();
    await press(page, "Copy");
    await page.getByRole("button", { name: "Copied" }).waitFor();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    await press(page, "Edit");
    const edited = await (await page.waitForFunction(() => document.querySelector("#question").value)).jsonValue();
    await page.keyboard.press("Escape");
    await page.route("**/v1/blobs/*", async (route) => (await setTimeout(300), route.continue()));
    await page.locator(".turn").first().getByRole("button", { name: "Try again" }).dblclick();
    await page.waitForFunction(() => document.querySelector(".branches").textContent.includes("2 / 2") && document.querySelector(".meta"));
    await page.waitForLoadState("networkidle");
    return { asked: asked.map(({ messages, ...body }) => body), settings, changed, texts: [shown, copied, edited], notices, ...seen };
  },

  /** Asks in a browser that blocks the storage of pages: Chromium with "Block all cookies", Firefox with `FIREFOX_PREFS`. */
  async blocked() {
    const folder = mkdtempSync(`${tmpdir()}/profile-`);
    mkdirSync(`${folder}/Default`);
    writeFileSync(`${folder}/Default/Preferences`, '{"profile": {"default_content_setting_values": {"cookies": 2}}}');
    const persistent = () => chromium.launchPersistentContext(folder, { executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
    const context = await (isFirefox ? browser.newContext() : persistent());
    const page = await context.newPage();
    await page.goto(gateway);
    const isBlocked = await page.evaluate(() => {
      try {
        return !sessionStorage;
      } catch {
        return true;
      }
    });
    await ask(page, "Hello?\n#sim words=3 rate=0");
    await page.waitForSelector(".meta");
    const answer = (await text(page)).trim();
    await page.goto(`${gateway}/ops`);
    const panel = await page.locator("article .about").first().textContent();
    await context.close();
    rmSync(folder, { recursive: true });
    return { isBlocked, answer, panel };
  },

  /** Copies without a permission, and twice with one; then moves the replay of a running turn back. */
  async paused() {
    const { context, page, seen } = await open({ viewport: SIZES.small });
    await page.goto(gateway);
    await ask(page, "Count.\n#sim words=900 rate=20");
    await longer(page, 80);
    // A click of a script: the browser permits only users to copy. To the browser, `evaluate` is a user. So the page
    // reports its labels on the console.
    await page.addInitScript(() => {
      const clicking = setInterval(() => {
        const copy = document.querySelector(".question button");
        if (!copy) return;
        clearInterval(clicking);
        new MutationObserver(() => console.debug(copy.textContent)).observe(copy, { childList: true });
        copy.focus();
        copy.click();
      }, 50);
    });
    const labelled = (label) => page.waitForEvent("console", (message) => message.text() === label);
    const [refused, restored] = [labelled("Not copied"), labelled("Copy")];
    await page.reload();
    await refused;
    await restored;
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    const copied = labelled("Copied");
    await page.keyboard.press("Enter");
    await copied;
    const restoredAgain = labelled("Copy");
    await page.keyboard.press("Enter");
    await restoredAgain;
    await page.goto(new URL(await page.getByRole("link", { name: "Timeline" }).getAttribute("href"), page.url()).href);
    await page.waitForFunction(() => document.querySelector("#text").textContent.includes("w000020"));
    const read = () => page.waitForResponse(/\/timeline$/).then((response) => response.finished());
    await page.locator("#position").press("Home");
    await read();
    await read();
    const clock = await page.locator("#clock").textContent();
    await page.locator("#position").press("End");
    await read();
    await page.waitForFunction(() => document.querySelector("#text").textContent.includes("w000060"));
    return { clock: clock.split(" of ")[0], ...seen };
  },

  /** Opens addresses whose percent-encoding is malformed. */
  async malformed() {
    const { context, page, seen } = await open({});
    await page.goto(`${gateway}/#%`);
    await page.waitForFunction(() => document.querySelectorAll("#model option").length > 1);
    const isNew = await page.locator("#welcome").isVisible();
    await page.goto(`${gateway}/turns/%`);
    const notice = await page.locator("#notice:visible").textContent();
    await context.close();
    return { isNew, notice, ...seen };
  },

  /** Types in the search field while the second page of the list cannot be read, and then while it is read. */
  async list() {
    const { page, seen } = await open({ viewport: SIZES.small });
    const at = new Date().toISOString();
    const pageOf = (title, next) => ({ json: { data: [{ id: title, title, created_at: at, updated_at: at, turns: 1 }], next } });
    let [pass, requests] = [null, 0];
    const held = new Promise((resolve) => (pass = resolve));
    await page.route(/\/v1\/sessions\?limit=50/, async (route) => {
      if (!route.request().url().includes("&after=")) return route.fulfill(pageOf("One", "1"));
      requests += 1;
      if (requests === 1) return route.fulfill({ status: 503, json: { error: { message: "busy" } } });
      await held;
      return route.fulfill(pageOf("Two", null));
    });
    await page.goto(gateway);
    const more = page.getByRole("button", { name: "More chats" });
    await more.waitFor();
    const search = page.locator("#search");
    await search.fill("o");
    await page.locator("#notice", { hasText: "busy" }).waitFor();
    for (const typed of ["O", "o"]) await search.fill(typed);
    await more.click();
    pass();
    await more.waitFor({ state: "detached" });
    await page.waitForLoadState("networkidle");
    return { requests, titles: await page.locator("#sessions a").allTextContents(), ...seen };
  },

  /** Returns what the page says when the budget is spent, the log is full, and a key is revoked; then gives it `other`. */
  async refusals(full, chat, revoked, other) {
    const { page } = await open({ viewport: SIZES.small });
    const said = [];
    const enter = async (key) => {
      await page.locator("#login[open] #key").fill(key);
      await page.keyboard.press("Enter");
      await page.waitForFunction(() => !document.querySelector("#login").open);
    };
    for (const url of [gateway, full]) {
      await page.goto(url);
      // A space of width 0, which is copied with a key from some pages.
      await page.locator("#login[open] #key").fill(`${revoked.slice(0, 9)}\u200b${revoked.slice(9)}`);
      await page.keyboard.press("Enter");
      await page.locator("#key:invalid").waitFor();
      await enter(revoked);
      await ask(page, "Hello?");
      await page.waitForSelector("#notice:visible");
      said.push([await page.locator("#notice").textContent(), await page.getByLabel("Question").inputValue()]);
    }
    await page.goto(chat);
    await enter(revoked);
    await page.waitForSelector("#login[open]");
    said.push([await page.locator("#refusal").textContent(), await page.getByLabel("Question").inputValue()]);
    await enter(other);
    await page.waitForSelector(".meta");
    return { said, text: (await text(page)).trim() };
  },

  /** Shows one chat in two tabs; shares a running answer with a browser without a key; branches the chat, asks in both tabs at
   * once, and deletes it. */
  async together(key) {
    const { context, page, seen } = await open({ viewport: SIZES.small });
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    const enter = async (tab) => {
      await tab.goto(gateway);
      await tab.locator("#login[open] #key").fill(key);
      await tab.keyboard.press("Enter");
      await tab.waitForFunction(() => !document.querySelector("#login").open);
    };
    const other = await context.newPage();
    await enter(page);
    await enter(other);
    await ask(page, "Count.\n#sim words=150 rate=25");
    await longer(page, 80);
    await marked(page, "live");
    await other.getByRole("link", { name: "Count." }).click();
    await longer(other, 80);
    await press(page, "Share");
    await page.waitForSelector("#notice:visible");
    const link = await page.evaluate(() => navigator.clipboard.readText());
    // It hides the notice, and does not stop the answer.
    await page.keyboard.press("Escape");
    await page.waitForSelector("#notice", { state: "hidden" });
    // A shared link in another tab receives the messages about changes of chats, too.
    const beside = await context.newPage();
    await beside.goto(link);
    const { page: reader, seen: seenByReader } = await open({ viewport: SIZES.phone });
    const paths = new Set();
    reader.on("request", (request) => request.url().includes("/v1/") && paths.add(request.url().replace(/.*[/]v1[/](\w+)[/][^/]+[/](\w+).*/, "$1 $2")));
    await reader.goto(link);
    await longer(reader, 80);
    await reader.keyboard.press("Escape");
    const spoken = await reader.locator("#spoken").textContent();
    for (const tab of [page, other, reader]) await tab.waitForSelector(".meta");
    const texts = await Promise.all([page, other, reader].map(async (tab) => (await text(tab)).trim()));
    await page.locator(".answer").getByRole("button", { name: "Copy", exact: true }).click();
    await page.locator(".answer").getByRole("button", { name: "Copied" }).waitFor();
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    const figures = await page.locator(".meta").textContent();
    const mark = await page.locator("#mark").textContent();
    const shown = await Promise.all([".name", ".said", ".meta", "#turns > .quiet"].map((name) => reader.locator(name).innerText()));
    const forReader = { shown, buttons: await reader.locator("button:visible").allTextContents(), paths: [...paths] };
    await page.locator(".question").hover();
    await press(page, "Edit");
    await ask(page, "Count again.\n#sim words=3 rate=0");
    const branch = (tab, label) => tab.waitForFunction((label) => document.querySelector(".branches").textContent.includes(label) && document.querySelector(".meta"), label);
    await branch(page, "2 / 2");
    await press(page, "Try again");
    await branch(page, "3 / 3");
    await branch(other, "3 / 3");
    await page.getByRole("button", { name: "Earlier branch" }).click();
    await page.getByRole("button", { name: "Earlier branch" }).click();
    const first = (await text(page)).trim();
    const asked = [[page, "One?"], [other, "Two?"]];
    await Promise.all(asked.map(([tab, line]) => ask(tab, `${line}\n#sim words=60 rate=30`)));
    for (const [tab] of asked) await tab.waitForFunction(() => document.querySelectorAll(".meta").length === 2);
    const own = await Promise.all(asked.map(([tab]) => tab.locator(".said").last().innerText()));
    await page.locator("#sessions .current").hover();
    await press(page, "Delete Count.");
    await page.locator("#asking-yes").click();
    for (const tab of [page, other]) await tab.waitForFunction(() => !document.querySelector("#sessions .chat"));
    const late = other.locator("#notice", { hasText: "deleted" });
    const gone = [await late.textContent()];
    await ask(other, "Too late?");
    await other.locator("#notice", { hasText: "Begin a new chat" }).waitFor();
    gone.push(await late.textContent());
    const isKeyWanted = await beside.evaluate(() => document.querySelector("#login").open);
    return { texts, copied, figures, mark, forReader, spoken, isKeyWanted, first, own: own.map((line) => line.slice(0, 4)), gone, ...seen, complaintsOfReader: seenByReader.complaints };
  },

  /** Opens a long chat without a title, and reads its earlier turns. */
  async earlier(session) {
    const { page, seen } = await open({ viewport: SIZES.small });
    await page.goto(`${gateway}/#${session}`);
    const counts = [];
    const more = page.getByRole("button", { name: "Earlier turns" });
    await page.locator(".turn").first().waitFor();
    await page.locator("#question").fill(await page.locator(".said").last().textContent());
    const directions = await page.evaluate(() => {
      const last = document.querySelector(".turn:last-child");
      const direction = (one) => getComputedStyle(one).direction;
      const blocks = [last.querySelector(".said"), ...last.querySelectorAll(".text p, .text ul, .text .code")];
      return [...blocks.map((one) => [one.className || one.localName, direction(one)]), direction(document.querySelector("#question"))];
    });
    for (;;) {
      counts.push(await page.locator(".turn").count());
      if (!(await more.count())) break;
      await more.click();
      await page.waitForFunction((before) => document.querySelectorAll(".turn").length > before, counts.at(-1));
    }
    await page.waitForFunction(() => document.querySelector("#title").textContent.startsWith("Question"));
    const link = await page.locator("#sessions .current a").textContent();
    await page.locator("#scroll").evaluate((one) => (one.scrollTop = 0));
    await press(page, "Go to the end");
    await page.waitForFunction(() => document.querySelector("#to-end").hidden);
    return { counts, directions, title: await page.locator("#title").textContent(), link, first: await page.locator(".said").first().textContent(), ...seen };
  },

  /** Brings about each state; looks at it with axe, and takes a picture, in each look. Then collects which properties are
   * animated for as long as the state lasts. */
  async states(locked, folder) {
    if (!existsSync(AXE)) return { isMissing: true };
    const axe = readFileSync(AXE, "utf8");
    const violations = [];
    const animated = new Set();
    const login = async (page) => {
      await page.goto(locked);
      await page.waitForSelector("#login[open]");
    };
    for (const [state, begin] of Object.entries({ ...STATES, login })) {
      const context = await browser.newContext({ viewport: SIZES.desktop, reducedMotion: "reduce" });
      const page = await context.newPage();
      await begin(page);
      await page.evaluate(axe);
      // Beside the demo, the conversation is narrowest on a window of this width.
      for (const [colorScheme, size] of state === "demo" ? [...LOOKS, ["light", "narrow"]] : LOOKS) {
        await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
        await page.setViewportSize(SIZES[size]);
        const shown = { queued: "button:text-is('Take back')", "guide-tables": "main > table" }[state];
        if (shown) await page.locator(shown).first().scrollIntoViewIfNeeded();
        await page.screenshot({ path: `${folder}/${state}-${colorScheme}-${size}.png` });
        const found = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
        // axe does not know whether a screen reader reads the `aria-label` of an element without a role. Most do not.
        const unread = found.incomplete.filter(({ id }) => id === "aria-prohibited-attr");
        for (const { id, nodes } of [...found.violations, ...unread]) violations.push(`${state} ${colorScheme} ${size}: ${id}: ${nodes[0].target} ${nodes[0].failureSummary}`);
      }
      await page.emulateMedia({ reducedMotion: "no-preference" });
      for (const name of await page.evaluate(endlesslyAnimated)) animated.add(name);
      await context.close();
    }
    return { violations, animated: [...animated].sort() };
  },

  /** Asks; reloads; is offline for `OFFLINE_MS`; sleeps while the gateway is replaced; waits for the end. */
  async interrupted(line) {
    const { context, page, seen } = await open({ viewport: SIZES.small });
    await page.goto(gateway);
    await page.getByLabel("Question").fill(line);
    await page.keyboard.press("Enter");
    await longer(page, 80);
    await page.reload();
    await longer(page, 200);
    const online = setTimeout(OFFLINE_MS);
    await context.setOffline(true);
    await marked(page, "reconnecting");
    const lost = await page.locator(".lost-line").last().textContent();
    const before = (await text(page)).length;
    const chosen = await choose();
    await online;
    await context.setOffline(false);
    await marked(page, "caught up");
    await longer(page, before);
    await sleep();
    await page.waitForSelector(".meta");
    const answers = await page.locator(".answer").count();
    const heard = await page.locator("[aria-live], [role=status], [role=alert]").allTextContents();
    return { text: (await text(page)).trim(), answers, lost, chosen, title: await page.title(), isReadWordByWord: heard.some((one) => one.includes("w000001")), ...seen };
  },

  /** Asks a model that refuses the key once, and then one that cannot be reached at first. The session `id` says how far it is. */
  async obstacles() {
    const { page, seen } = await open({ viewport: SIZES.small });
    const reach = (id) => page.evaluate((id) => fetch("/v1/sessions", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ id }) }), id);
    const line = "#sim words=3 rate=0";
    const answers = page.locator(".answer .text");
    await page.goto(`${gateway}/`);
    await ask(page, `${line} fault=401 Why?`);
    const notice = page.locator("#notice", { hasText: "key" });
    await notice.waitFor();
    const refused = [await notice.getAttribute("role"), await notice.textContent(), await page.locator(".failure").innerText()];
    await ask(page, line);
    await answers.nth(1).filter({ hasText: "w000002" }).waitFor();
    await notice.waitFor({ state: "hidden" });
    await reach("corrected");
    // Otherwise the generator whose key is corrected answers.
    await page.waitForFunction(() => fetch("/v1/sessions/stopped").then(({ ok }) => ok));
    await ask(page, line);
    const waiting = page.getByText("Waiting for the model");
    await waiting.waitFor();
    const waited = await waiting.textContent();
    await reach("waited");
    await answers.nth(2).filter({ hasText: "w000002" }).waitFor();
    await waiting.waitFor({ state: "hidden" });
    return { refused, waited, ...seen };
  },

  /** Breaks an answer in every way that the demo offers, at the address `gateway` with the token of `up`. */
  async demo(token, folder) {
    const { page, seen } = await open({ viewport: SIZES.small });
    const shoot = async (name) => {
      await page.setViewportSize(SIZES.desktop);
      await page.screenshot({ path: `${folder}/demo-${name}.png` });
      await page.setViewportSize(SIZES.small);
    };
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
    await page.locator("#demo").getByText("with a button below").waitFor();
    await press("Second reader");
    await press("Cut my connection");
    await marked(page, "reconnecting");
    await shoot("cut");
    await page.waitForSelector(".ids .good:has-text('goes on after')");
    const pids = await parts.locator(".pid").allTextContents();
    await page.waitForSelector(".parts .used:has-text('writes the answer')");
    await press("Kill this generator");
    await page.waitForSelector(".ids .good:has-text('takes over')");
    await marked(page, "live");
    await shoot("taken-over");
    await press("Kill this gateway");
    await marked(page, "reconnecting");
    await marked(page, "caught up");
    await page.waitForSelector(".proof:visible");
    const all = (state) => page.waitForFunction((state) => [...document.querySelectorAll(".parts li")].every((one) => one.className === state), state);
    await all("up");
    await shoot("whole");
    // Without a gateway the page knows of no process whether it runs.
    await page.route("**/demo/processes", (route) => route.abort());
    await all("down");
    await parts.getByText("unknown").nth(5).waitFor();
    await page.unroute("**/demo/processes");
    await all("up");
    const after = await parts.locator(".pid").allTextContents();
    const names = await parts.locator("b").allTextContents();
    const proof = await page.locator(".proof").textContent();
    const second = await page.locator(".other .mark").textContent();
    const answer = (await text(page)).trim();
    await ask(page, "Count.\n#sim words=4000 rate=20");
    await page.locator(".answer .text", { hasText: "w000005" }).waitFor();
    // The panel is open after a reload, follows the shown chat, and finds an answer that runs when it is opened.
    const button = (name, disabled) => page.getByRole("button", { name, exact: true, disabled }).waitFor();
    await page.reload();
    await button("Cut my connection", false);
    await page.locator(".ids b").first().waitFor();
    // Beside the panel, the list of chats is a drawer in a window of this size.
    await page.locator("#new-narrow").click();
    await button("Cut my connection", true);
    await button("Start a long answer", false);
    await page.goBack();
    await press("Close");
    await page.reload();
    await page.locator(".answer .text", { hasText: "w000005" }).waitFor();
    await press("Demo");
    await press("Cut my connection");
    await marked(page, "reconnecting");
    await page.waitForSelector(".ids .good:has-text('goes on after')");
    await marked(page, "live");
    // A generator that is killed by another program is missed, too.
    const writer = page.locator(".parts .used:has-text('writes the answer')");
    const killed = await writer.locator(".pid").textContent();
    process.kill(Number(killed), "SIGKILL");
    await page.waitForFunction((killed) => {
      const pid = document.querySelector(".parts .used .pid")?.textContent;
      return pid !== undefined && pid !== killed;
    }, killed);
    await marked(page, "live");
    await press("Stop");
    await page.waitForSelector(".meta:has-text('stopped')");
    await page.getByRole("link", { name: "Timeline" }).first().click();
    const timeline = await replayed(page, (name) => page.screenshot({ path: `${folder}/timeline-${name}.png`, fullPage: true }));
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

  /** Shows a session in each look, after a key, and looks for what an answer must not change. */
  async content(session, folder) {
    const shown = [];
    for (const [colorScheme, size] of LOOKS) {
      const { context, page, seen } = await open({ viewport: SIZES[size], colorScheme });
      await page.goto(`${gateway}/#${session}`);
      await page.waitForFunction(() => document.querySelectorAll(".text math").length === 4);
      await page.screenshot({ path: `${folder}/content-${colorScheme}-${size}.png` });
      const found = await page.evaluate(() => {
        /** Returns the words of the table that are on more than one line. */
        const broken = [...document.querySelectorAll(".text td")].flatMap((cell) => {
          const range = document.createRange();
          return [...cell.firstChild.data.matchAll(/\S+/g)].filter(({ 0: word, index }) => {
            range.setStart(cell.firstChild, index);
            range.setEnd(cell.firstChild, index + word.length);
            return range.getClientRects().length > 1;
          });
        });
        const table = document.querySelector(".text table");
        return {
          broken: broken.map(String),
          isScrolled: table.scrollWidth > table.clientWidth,
          isWide: document.documentElement.scrollWidth > innerWidth,
          formulas: [...document.querySelectorAll(".text math")].map((one) => [one.textContent, one.getAttribute("display")]),
          text: [...document.querySelectorAll(".text p")].at(-1).textContent,
          heading: document.querySelector("#title").scrollWidth > document.querySelector("#title").clientWidth,
          titleWidth: document.querySelector("#title").clientWidth,
          branches: getComputedStyle(document.querySelector(".branches button")).opacity,
        };
      });
      const search = async () => {
        if (size === "phone") await page.locator("#menu").click();
        await page.locator("#search").fill("throughput");
        const hit = page.locator("#sessions a", { has: page.locator("small") });
        await hit.waitFor();
        await page.screenshot({ path: `${folder}/found-${colorScheme}-${size}.png` });
        return [await hit.locator(".title").evaluate((one) => one.firstChild.clientWidth > 20), await hit.locator("small").textContent()];
      };
      shown.push({ size, ...found, found: await search(), ...seen });
      await context.close();
    }
    return { pages: shown };
  },

  /** Asks two questions of a new chat whose title a model writes. */
  async titled(folder) {
    const { page, seen } = await open({ viewport: SIZES.small });
    const bodies = [];
    page.on("request", (request) => request.method() === "POST" && request.url() === `${gateway}/v1/turns` && bodies.push(request.postDataJSON()));
    await page.goto(gateway);
    await ask(page, "Rivers?\n#sim words=3 rate=0");
    await page.waitForFunction(() => document.querySelector("#title").textContent === "w000000 w000001 w000002");
    await ask(page, "And lakes?\n#sim words=2 rate=0");
    await page.waitForFunction(() => document.querySelectorAll(".meta").length === 2);
    await page.reload();
    await page.waitForFunction(() => document.querySelectorAll(".meta").length === 2);
    const title = await page.locator("#title").textContent();
    for (const [colorScheme, size] of LOOKS) {
      await page.emulateMedia({ colorScheme });
      await page.setViewportSize(SIZES[size]);
      await page.screenshot({ path: `${folder}/titled-${colorScheme}-${size}.png` });
    }
    return { title, titles: bodies.filter((body) => body.message).map(({ model, store }) => [model, store]), asked: bodies.length, ...seen };
  },

  /** Asks three questions while the first answer runs, one of which is taken back; then another model, and a file of the answer. */
  async queued() {
    const { page, seen } = await open({ viewport: SIZES.small });
    const waiting = (count) => page.waitForFunction((count) => document.querySelectorAll(".answer button").length && [...document.querySelectorAll(".answer button")].filter((one) => one.textContent === "Take back").length === count, count);
    await page.goto(gateway);
    await ask(page, "First.\n#sim words=4000 rate=20");
    await longer(page, 80);
    await ask(page, "Second.\n#sim words=3 rate=0");
    await waiting(1);
    await ask(page, "Third.\n#sim words=3 rate=0");
    await waiting(2);
    const place = await page.locator(".answer > .quiet:visible").first().textContent();
    await page.reload();
    await waiting(2);
    await page.getByRole("button", { name: "Take back" }).last().click();
    await waiting(1);
    const draft = await (await page.waitForFunction(() => document.querySelector("#question").value)).jsonValue();
    await page.getByLabel("Question").fill("");
    await page.keyboard.press("Escape");
    await page.waitForFunction(() => document.querySelectorAll(".meta").length === 2);
    const asked = await page.locator(".said").allTextContents();
    const last = (await text(page)).trim();
    const downloading = page.waitForEvent("download");
    await page.getByRole("button", { name: "Download" }).last().click();
    const download = await downloading;
    const file = readFileSync(await download.path(), "utf8");
    await page.getByLabel("Try again with").last().selectOption({ label: "Claude Haiku 5.5" });
    await page.waitForFunction(() => [...document.querySelectorAll(".branches")].at(-1).textContent.includes("2 / 2") && document.querySelectorAll(".meta").length === 2);
    const session = new URL(page.url()).hash.slice(1);
    const { turns } = await (await fetch(`${gateway}/v1/sessions/${session}/turns`)).json();
    return { place, draft, asked, last, file, name: download.suggestedFilename(), turns: turns.map(({ model, outcome, text }) => [model, outcome, text.length > 0]), ...seen };
  },

  /** Changes an answer with the button, whose first request is lost, and the next one with the keyboard. */
  async steered() {
    const { page, seen } = await open({ viewport: SIZES.phone });
    const keys = [];
    await page.route("**/steer", (route) => (keys.push(route.request().headers()["idempotency-key"]), keys.length === 1 ? route.abort() : route.continue()));
    const change = page.getByRole("button", { name: "Change the answer" });
    const offered = [];
    const isOffered = async () => offered.push(await change.isVisible());
    const ended = (count) => page.waitForFunction((count) => document.querySelectorAll(".meta").length === count, count);
    await page.goto(gateway);
    await page.getByLabel("Question").fill("First.\n#sim words=4000 rate=20");
    await isOffered();
    await page.keyboard.press("Enter");
    await longer(page, 80);
    await isOffered();
    await page.getByLabel("Question").fill("Second.\n#sim words=4000 rate=20");
    await isOffered();
    await change.click();
    await ended(1);
    await longer(page, 80);
    await page.getByLabel("Question").fill("Third.\n#sim words=3 rate=0");
    await page.keyboard.press("Control+Enter");
    await ended(3);
    await isOffered();
    const asked = await page.locator(".said").allTextContents();
    const session = new URL(page.url()).hash.slice(1);
    const { turns } = await (await fetch(`${gateway}/v1/sessions/${session}/turns`)).json();
    const [key, again, other] = keys;
    return { offered, asked, last: (await text(page)).trim(), isRepeated: key === again && key !== other, turns: turns.map(({ outcome }) => outcome), ...seen };
  },

  async decided(folder) {
    const { page, seen } = await open({ viewport: SIZES.desktop });
    const tools = ["look", "listen"].map((name) => ({ name, input_schema: { type: "object" } }));
    const body = JSON.stringify({ message: "#sim words=2 rate=0 tool=look,listen", tools });
    const asked = await (await fetch(`${gateway}/v1/turns`, { method: "POST", headers: { "content-type": "application/json" }, body })).json();
    await page.goto(`${gateway}/#${asked.session}`);
    const banner = page.getByRole("region", { name: "Tool calls that wait" });
    await banner.getByRole("textbox", { name: "Result of look" }).fill("blue");
    await page.screenshot({ path: `${folder}/decided.png` });
    const said = await banner.locator("p").textContent();
    await banner.getByRole("button", { name: "Deny listen" }).click();
    await banner.getByRole("textbox", { name: "Result of listen" }).waitFor({ state: "detached" });
    await banner.getByRole("button", { name: "Send result of look" }).click();
    await page.waitForFunction(() => document.querySelectorAll(".meta").length === 2);
    await banner.waitFor({ state: "hidden" });
    const { turns } = await (await fetch(`${gateway}/v1/sessions/${asked.session}/turns`)).json();
    return { said, results: turns[1].input[0].content.map(({ content }) => content), count: turns.length, ...seen };
  },

  async hostile(session, folder, key) {
    const shown = [];
    for (const [colorScheme, size] of LOOKS) {
      const viewport = SIZES[size];
      const { context, page, seen } = await open({ viewport, colorScheme });
      await context.grantPermissions(["clipboard-read", "clipboard-write"]);
      const statuses = new Set();
      page.on("response", (response) => response.url().includes("/v1/") && statuses.add(response.status()));
      let release;
      const held = new Promise((resolve) => (release = resolve));
      await page.route("**/v1/models", async (route) => {
        if (route.request().headers().authorization === "Bearer wrong") await held;
        await route.continue();
      });
      await page.goto(`${gateway}/#${session}`);
      await page.locator("#key").waitFor();
      const withoutKey = [...statuses];
      for (const tried of ["wrong", key]) {
        await page.locator("#key").fill(tried);
        await page.keyboard.press("Enter");
        if (tried === "wrong") await page.waitForFunction(() => /credential|key/.test(document.querySelector("#refusal").textContent) && document.querySelector("#login").open);
      }
      await page.waitForFunction(() => document.querySelectorAll(".meta").length === 5);
      // A refusal of the wrong key that comes late does not ask again.
      const late = page.waitForResponse((response) => response.url().endsWith("/v1/models") && response.ok());
      release();
      await late;
      const found = await page.evaluate(() => ({
        text: document.querySelector(".answer .text").textContent,
        folded: [...document.querySelectorAll(".answer details")].map((one) => [one.firstChild.textContent, one.lastChild.textContent, one.open]),
        made: [...document.querySelectorAll(".answer .text *")].map((one) => one.localName),
        links: [...document.querySelectorAll(".answer .text a")].map((one) => [one.protocol, one.target, one.rel]),
        attributes: [...new Set([...document.querySelectorAll(".answer .text *")].flatMap((one) => one.getAttributeNames()))],
        ran: globalThis.ran ?? null,
        expensive: [...document.querySelectorAll(".answer")].slice(1).map((one) => one.querySelector(".text").textContent.trim()),
        coloured: document.querySelectorAll(".code [class^=hljs]").length,
        isWide: document.documentElement.scrollWidth > innerWidth,
        background: getComputedStyle(document.body).backgroundColor,
      }));
      await page.locator(".code button").first().click();
      await page.locator(".code button", { hasText: "Copied" }).waitFor();
      const isCopied = (await page.evaluate(() => navigator.clipboard.readText())) === (await page.locator(".code code").first().textContent());
      await page.screenshot({ path: `${folder}/hostile-${colorScheme}-${size}.png` });
      await page.getByText("Earlier turns").click();
      await page.waitForFunction(() => document.querySelectorAll(".meta").length === 6);
      const longLine = await page.locator(".answer .text").first().textContent();
      shown.push({ size, colorScheme, withoutKey, longLine, isCopied, ...found, ...seen });
      await context.close();
    }
    return { pages: shown };
  },
};

for (const one of steps.split(",")) console.log(JSON.stringify(await STEPS[one](...given)));
await browser.close();
