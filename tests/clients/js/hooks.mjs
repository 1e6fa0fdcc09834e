// What people do with components of hooks.jsx in Chromium, each in pages of its own, all at once:
// `hooks.mjs URL WHAT JSON [WHAT JSON ...]`. Prints one line for each.
import { closeOffline } from "./browsers.mjs";
import { browse } from "./chromium.mjs";

const [url, ...rest] = process.argv.slice(2);

/** What is shown as soon as `test` is true of it. */
async function until(page, test) {
  const isTrue = (test) => {
    const seen = globalThis.hook && globalThis.shown();
    return seen && new Function("seen", `return ${test}`)(seen) && seen;
  };
  const found = page.waitForFunction(isTrue, test, { polling: 50 }).catch(async (cause) => {
    throw new Error(`not shown: ${test}, but ${JSON.stringify(await page.evaluate(() => globalThis.shown()))}`, { cause });
  });
  return (await found).jsonValue();
}

/** Answers a request with an error that no client repeats. */
const refuse = (route, message) => route.fulfill({ status: 500, json: { error: { code: "internal_error", message } } });

/** A promise, and the function that resolves it. */
function signal() {
  let give;
  const given = new Promise((resolve) => (give = resolve));
  return [given, give];
}

/** Returns the paths of the streams that a page has open, which change. */
function streamsOf(page) {
  const open = new Map();
  page.on("request", (request) => request.headers().accept === "text/event-stream" && open.set(request, new URL(request.url()).pathname));
  for (const end of ["requestfinished", "requestfailed"]) page.on(end, (request) => open.delete(request));
  return open;
}

const begin = (page, given) => page.evaluate((given) => globalThis.begin(given), given);
const ask = (page, question) => page.evaluate((question) => globalThis.hook.ask(question), question);
/** Returns a page of a session in which a question was answered. */
async function answered(open, given) {
  const page = await open(url);
  await begin(page, given);
  await until(page, "seen.state === 'idle'");
  await ask(page, given.line);
  await until(page, "seen.turns[0]?.outcome === 'completed' && seen.turns[0].input.length");
  return page;
}

const ended = "(seen.state ?? seen.status) === 'ended'";

const DOINGS = {
  /** Asks a turn, or reads a stream, and waits for its end. */
  async read(open, given) {
    const page = await open(url);
    await begin(page, given);
    return until(page, ended);
  },

  /** Asks in a session, and waits until no turn runs. */
  async session(open, given) {
    const page = await open(url);
    await begin(page, given);
    await until(page, "seen.state !== 'connecting'");
    await ask(page, given.line);
    return until(page, "seen.turns.length > 0 && seen.turns.every((turn) => turn.outcome !== 'running' && turn.input.length)");
  },

  /** Reloads in the middle of the answer; stops reading, and reads it again; then unmounts, and cancels at last. */
  async turn(open, given) {
    const page = await open(url);
    let posts = 0;
    await page.route("**/v1/turns", async (route) => {
      posts += 1;
      // A double click: the question is still on its way.
      if (posts === 1) await ask(page, given.line);
      await route.continue();
    });
    await begin(page, given);
    const first = await until(page, "seen.text.length > 80");
    await page.reload();
    const again = await until(page, "seen.text.length > 160");
    await page.evaluate(() => globalThis.hook.stop());
    const stopped = await until(page, ended);
    await page.evaluate((turn) => globalThis.hook.resume(turn), first.turn);
    await until(page, "seen.text.length > 240");
    await page.evaluate(() => globalThis.unmount());
    const tab = await open(url);
    await begin(tab, { ...given, shared: first.turn });
    await until(tab, "seen.text.length > 320");
    const running = await tab.evaluate((turn) => fetch(`/v1/turns/${turn}`).then((found) => found.json()), first.turn);
    await tab.evaluate(() => void globalThis.hook.cancel());
    const cancelled = await until(tab, ended);
    return { first, again, stopped, posts, running: running.outcome, cancelled };
  },

  /** Puts a message into an answer, and another one when that has ended. */
  async steer(open, given) {
    const page = await open(url);
    const steer = () => page.evaluate((line) => globalThis.hook.steer(line), given.next);
    await begin(page, given);
    await until(page, "seen.text.length > 80");
    const made = [await steer()];
    const first = await until(page, ended);
    made.push(await steer());
    return { made, first, second: await until(page, `${ended} && seen.turn === '${made[1].turn}'`) };
  },

  /** Puts a message into a session in which no turn runs, and another one into its answer. */
  async steerSession(open, given) {
    const page = await open(url);
    const steer = (line) => page.evaluate((line) => globalThis.hook.steer(line), line);
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    const made = [await steer(given.line)];
    await until(page, "seen.texts[0]?.length > 80");
    made.push(await steer(given.next));
    return { made, ...(await until(page, "seen.turns.length === 2 && seen.turns.every((turn) => turn.outcome !== 'running' && turn.input.length)")) };
  },

  /** The cancellation of a running turn is refused, and the next one is not. */
  async uncancelled(open, given) {
    const page = await open(url);
    await page.route("**/cancel", (route) => refuse(route, "not now"), { times: 1 });
    await begin(page, given);
    await until(page, "seen.text.length > 80");
    const cancelled = await page.evaluate(() => globalThis.hook.cancel());
    const shown = await until(page, "seen.error");
    const later = await until(page, `seen.text.length > ${shown.text.length} + 40`);
    await page.evaluate(() => void globalThis.hook.cancel());
    return { cancelled, shown, later, end: await until(page, ended) };
  },

  /** Two questions are on their way, and the second one is asked twice, the second time after the first has its answer. */
  async pending(open, given) {
    const page = await open(url);
    const [isFirst, first] = signal();
    const [isSecond, second] = signal();
    let posts = 0;
    await page.route("**/v1/turns", async (route) => {
      posts += 1;
      await (posts === 1 ? isFirst : isSecond);
      await refuse(route, "busy");
    });
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    await page.evaluate(() => void (globalThis.asked = ["one", "two"].map((line) => globalThis.hook.ask(line))));
    first();
    await page.evaluate(() => globalThis.asked[0]);
    await page.evaluate(() => void globalThis.asked.push(globalThis.hook.ask("two")));
    second();
    await page.evaluate(() => Promise.all(globalThis.asked));
    return { posts };
  },

  /** A question is refused after another session was opened. */
  async moved(open, given) {
    const page = await open(url);
    const [isOpen, opened] = signal();
    await page.route("**/v1/turns", async (route) => {
      await isOpen;
      await refuse(route, "too late");
    });
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    await page.evaluate((line) => void (globalThis.asked = globalThis.hook.ask(line)), given.line);
    await page.evaluate(() => void globalThis.open("another"));
    await until(page, "seen.state === 'idle'");
    opened();
    const asked = await page.evaluate(() => globalThis.asked);
    return { asked, ...(await until(page, "true")) };
  },

  /** The turns before those that are shown cannot be read, while the last turn ends. */
  async earlier(open, given) {
    const page = await open(url);
    const [isStreamed, streamed] = signal();
    await page.route("**/turns?order=desc**", async (route) => {
      const asked = route.request().url();
      if (!asked.includes("after=")) return route.fulfill({ response: await route.fetch({ url: asked.replace("limit=100", "limit=1") }) });
      await isStreamed;
      await refuse(route, "not now");
    });
    await begin(page, given);
    await until(page, "seen.hasEarlier");
    await ask(page, given.line);
    await until(page, "seen.texts.at(-1).length > 20 && seen.turns.at(-1).outcome === 'running'");
    await page.evaluate(() => void globalThis.hook.readEarlier());
    // No event is left that shows it again.
    await until(page, "!seen.hasEarlier && seen.turns.at(-1).outcome !== 'running'");
    streamed();
    return until(page, "seen.error");
  },

  /** A page is hidden while a turn runs, and shown after another client has asked. */
  async hidden(open, given) {
    const page = await open(url);
    const streams = streamsOf(page);
    const hide = (isHidden) =>
      page.evaluate((isHidden) => {
        Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
      }, isHidden);
    const answered = (count) => until(page, `seen.turns.filter((turn) => turn.outcome === 'completed').length === ${count}`);
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    await ask(page, given.line);
    await until(page, "seen.turns.length === 1");
    await hide(true);
    const first = await answered(1);
    while (streams.size) await page.waitForTimeout(50);
    const body = JSON.stringify({ session: given.session, message: given.next });
    const headers = { "content-type": "application/json", accept: "text/event-stream" };
    await page.evaluate((init) => fetch("/v1/turns", init).then((answer) => answer.text()), { method: "POST", headers, body });
    const resting = await until(page, "true");
    await hide(false);
    const second = await answered(2);
    return { first: first.texts, resting: resting.texts, second: second.texts, state: second.state, streams: streams.size };
  },

  /** Asks with a file; asks for another answer; edits the question, which keeps the file; goes back to the first answer. */
  async branches(open, given) {
    const page = await open(url);
    const run = (work, arg) => page.evaluate(work, arg);
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    const file = await run(async () => globalThis.hook.upload(new File(["A river."], "river.txt", { type: "text/plain" })));
    const first = await ask(page, [file, { type: "text", text: given.line }]);
    const answered = (count) => until(page, `seen.turns.length === ${count} && !seen.pending.length && seen.turns.every((turn) => turn.outcome === 'completed')`);
    await answered(1);
    const next = await ask(page, given.next);
    await answered(2);
    const again = await run((turn) => globalThis.hook.regenerate(turn), first);
    const { branch: regenerated } = await answered(3);
    const edited = await run(([turn, text]) => globalThis.hook.edit(turn, text), [first, given.edited]);
    const { branch: changed, branches } = await answered(4);
    await run((turn) => globalThis.hook.showBranch(turn), first);
    const { branch: back } = await until(page, `seen.branch[0].turn === '${first}'`);
    const late = await ask(page, given.next);
    const { branch: continued, error } = await answered(5);
    const ids = (branch) => branch.map(({ turn }) => turn);
    return { turns: [first, next, again, edited, late], shown: [regenerated, changed, back, continued].map(ids), siblings: changed[0].siblings, branches: branches.map(({ turns }) => turns), input: changed[0].input, error };
  },

  /** Two calls wait in two tabs: one is decided in each. */
  async calls(open, given) {
    const [page, tab] = [await open(url), await open(url)];
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    await ask(page, given.line);
    await begin(tab, given);
    const { calls } = await until(page, "seen.calls.length === 2");
    await until(tab, "seen.calls.length === 2");
    const decide = (one, call, decision) => one.evaluate(([call, decision]) => globalThis.hook.decide(call, decision), [call, decision]);
    const first = await decide(page, calls[0].call, { result: "blue" });
    const rest = await until(page, "seen.calls.length === 1");
    const refused = await decide(page, "nothing", { result: "blue" });
    const failed = await until(page, "seen.error");
    const last = await decide(tab, calls[1].call, { decision: "denied" });
    const ended = "seen.branch.length === 2 && seen.branch[1].outcome === 'completed' && !seen.calls.length";
    const [shown] = await Promise.all([until(page, ended), until(tab, ended)]);
    return { names: calls.map(({ name }) => name), waits: first.undecided_calls, rest: rest.calls.length, refused, code: failed.error.code, next: last.next, turns: shown.branch.map(({ turn }) => turn) };
  },

  /** Asks twice without a network, reloads, and opens a second tab. Then both have the network again. */
  async offline(open, { without, ...given }) {
    const setUp = (page) => page.addInitScript((name) => name && Object.defineProperty(name === "locks" ? navigator : globalThis, name, { value: undefined }), without);
    const page = await open(url, null, setUp);
    const context = page.context();
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    await context.setOffline(true);
    await page.evaluate(([one, two]) => void [globalThis.hook.ask(one), globalThis.hook.ask(two)], [given.line, given.next]);
    const kept = await until(page, "seen.pending.length === 2 && (seen.pending.every((one) => one.isStored) || !globalThis.indexedDB)");
    const tabs = [page];
    if (without !== "indexedDB") {
      await page.reload();
      tabs.push(await open(url, context, setUp));
      await begin(tabs[1], given);
      for (const one of tabs) await until(one, "seen.pending.length === 2");
    }
    await context.setOffline(false);
    const ended = "seen.turns.length === 2 && !seen.pending.length && seen.turns.every((turn) => turn.outcome === 'completed' && turn.input.length)";
    const shown = await Promise.all(tabs.map((one) => until(one, ended)));
    await page.reload();
    const after = await until(page, ended);
    return { kept: kept.pending.map(({ input, isStored }) => [input[0].content, isStored]), tabs: shown.map(({ texts }) => texts), after: after.pending };
  },

  /** A browser without room: a question is kept until the page is closed. More questions than the bound are refused. */
  async full(open, given) {
    const page = await open(url);
    const context = page.context();
    await begin(page, given);
    await until(page, "seen.state === 'idle'");
    const cdp = await context.newCDPSession(page);
    await context.setOffline(true);
    await cdp.send("Storage.overrideQuotaForOrigin", { origin: url, quotaSize: 1 });
    await page.evaluate((text) => void globalThis.hook.ask(text), `${given.line}\n${"x".repeat(200_000)}`);
    await until(page, "seen.pending.length === 1");
    await page.waitForTimeout(500);
    const [{ isStored }] = (await until(page, "seen.pending.length === 1")).pending;
    await cdp.send("Storage.overrideQuotaForOrigin", { origin: url });
    const results = await page.evaluate(async () => {
      const asked = Array.from({ length: 100 }, (_, number) => globalThis.hook.ask(`#sim words=1 rate=0 ${number}`));
      return [await asked.at(-1), document.querySelectorAll("article").length];
    });
    const crowded = await until(page, "seen.error");
    await page.evaluate(() => Promise.all(globalThis.hook.pending.slice(1).map(({ key }) => globalThis.hook.discard(key))));
    await until(page, "seen.pending.length === 1");
    await context.setOffline(false);
    const shown = await until(page, "seen.turns.length === 1 && !seen.pending.length && seen.turns[0].outcome === 'completed'");
    return { isStored, refused: results[0], code: crowded.error.code, waiting: crowded.pending.length, texts: shown.texts };
  },

  /** A question whose session was deleted, and an invalid one of another session before a valid one, first with a revoked key. */
  async undeliverable(open, given) {
    const page = await answered(open, given);
    const context = page.context();
    await context.setOffline(true);
    await page.evaluate((line) => void globalThis.hook.ask(line), given.line);
    await until(page, "seen.pending.length === 1 && seen.pending[0].isStored");
    await page.evaluate(() => globalThis.open("other-session"));
    await until(page, "seen.turns.length + seen.pending.length === 0");
    await page.evaluate((line) => void [globalThis.hook.ask({ message: line, colour: "blue" }), globalThis.hook.ask(line)], given.next);
    await until(page, "seen.pending.length === 2 && seen.pending.every((one) => one.isStored)");
    await closeOffline(page);
    await context.setOffline(false);
    await fetch(`${url}/v1/sessions/${given.session}`, { method: "DELETE", headers: { authorization: `Bearer ${given.key}` } });
    const revoked = await open(url, context);
    await begin(revoked, { ...given, key: "tr_revoked" });
    await until(revoked, "seen.pending[0]?.error");
    // Another tab has changed something.
    const reads = () => new Promise((resolve) => (new BroadcastChannel("tailrace-outbox").postMessage({}), setTimeout(resolve, 500)));
    await revoked.evaluate(reads);
    const held = await until(revoked, "seen.pending.length");
    await revoked.close();
    const tab = await open(url, context);
    await begin(tab, given);
    const refused = await until(tab, "seen.pending[0]?.error?.status === 404");
    await tab.evaluate(() => globalThis.open("other-session"));
    const other = await until(tab, "seen.turns[0]?.outcome === 'completed' && seen.pending.length === 1");
    await tab.evaluate((session) => globalThis.open(session), given.session);
    const still = await until(tab, "seen.pending[0]?.error?.status === 404");
    await tab.evaluate((key) => globalThis.hook.discard(key), still.pending[0].key);
    await until(tab, "seen.pending.length === 0");
    await tab.reload();
    const gone = await until(tab, "seen.state === 'idle'");
    return { held: held.pending[0].error?.status, refused: refused.pending[0].error.code, invalid: other.pending[0].error.code, other: other.texts, still: still.pending[0].error.code, gone: gone.pending };
  },

  /** Another client deletes the session of an open page, which then asks. A turn of another chat is edited. */
  async deleted(open, given) {
    const page = await answered(open, given);
    await page.evaluate(() => void globalThis.hook.edit("of-another-chat", "What?"));
    const unknown = await until(page, "seen.error?.code === 'turn_not_found'");
    await fetch(`${url}/v1/sessions/${given.session}`, { method: "DELETE", headers: { authorization: `Bearer ${given.key}` } });
    await page.evaluate((line) => void globalThis.hook.ask(line), given.line);
    const refused = await until(page, "seen.error?.status === 404 && seen.turns.length === 0");
    await page.evaluate((key) => globalThis.hook.discard(key), refused.pending[0].key);
    await page.evaluate((line) => void globalThis.hook.ask(line), given.next);
    const again = await until(page, "seen.turns[0]?.outcome === 'completed'");
    return { unknown: unknown.texts.length, refused: refused.error.code, again: again.texts };
  },

  /** Two tabs of a session that does not exist yet: one asks, twice, with a reload; both show the same. */
  async tabs(open, given) {
    const [page, tab] = [await open(url), await open(url)];
    const streams = streamsOf(tab);
    const logged = [];
    for (const one of [page, tab]) {
      one.on("console", (message) => message.type() === "error" && logged.push(message.text()));
      await begin(one, given);
      await until(one, "seen.state === 'idle'");
    }
    const [turn, same] = await page.evaluate((line) => Promise.all([globalThis.hook.ask(line), globalThis.hook.ask(line)]), given.line);
    await until(page, "seen.texts[0]?.length > 80");
    const early = await until(tab, "seen.texts[0]?.length > 80");
    const errors = [...logged];
    const refused = await ask(page, { message: "too early", on_busy: "reject" });
    const { error } = await until(page, "seen.error");
    await page.reload();
    const whole = "seen.turns.length === given && seen.turns.every((turn) => turn.outcome !== 'running' && turn.input.length)";
    await until(page, whole.replace("given", 1));
    await ask(page, given.next);
    const [first, second] = await Promise.all([page, tab].map((one) => until(one, whole.replace("given", 2))));
    return { turn, same, errors, early: early.state, refused, error, first, second, streams: [...streams.values()] };
  },
};

await browse("hooks.jsx", async (open) => {
  const cases = [];
  for (let n = 0; n < rest.length; n += 2) cases.push(DOINGS[rest[n]](open, JSON.parse(rest[n + 1])));
  for (const seen of await Promise.all(cases)) console.log(JSON.stringify(seen));
});
