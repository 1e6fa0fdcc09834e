// What people do with a chat in Chromium, each in a page of its own, all at once: `chat.mjs WHAT URL JSON [WHAT URL JSON ...]`. One line for each.
import { browse } from "./chromium.mjs";

/** What is shown as soon as `test` is true of it. */
async function until(page, test, given) {
  const found = await page.waitForFunction(
    ([test, given]) => {
      const seen = globalThis.shown?.();
      return seen?.messages !== undefined && new Function("seen", "given", `return ${test}`)(seen, given) && seen;
    },
    [test, given],
    { polling: 50 },
  );
  return found.jsonValue();
}

const CHARS = "(seen.texts.at(-1)?.[0] === 'assistant' ? seen.texts.at(-1)[1].length : 0)";
const saysMore = (page, chars) => until(page, `${CHARS} > given`, chars);
/** A page that was loaded is ready before it resumes: what it shows then is not all. */
const saysAll = (page, chars) => until(page, `seen.status === 'ready' && ${CHARS} === given`, chars);
const settles = (page, status = "ready") => until(page, "seen.status === given", status);
const finishes = (page, times) => until(page, "seen.finished >= given", times);
const send = (page, text) => page.evaluate((text) => void globalThis.chat.sendMessage({ text }), text);

async function chatOn(open, origin, given) {
  const page = await open(origin);
  await page.evaluate((given) => globalThis.begin(given), { id: given.id, body: given.body });
  // No user types as fast as a page resumes: a question that overtakes it is another test than these.
  await until(page, "seen.status === 'ready' && seen.hasResumed");
  return page;
}

const DOINGS = {
  /** Asks, one question after the other, and waits for each to be answered, in so many `turns`. */
  async ask(open, origin, { turns = 1, ...given }) {
    const page = await chatOn(open, origin, given);
    let seen;
    for (const [before, text] of given.texts.entries()) {
      await send(page, text);
      await finishes(page, (before + 1) * turns);
      seen = await settles(page, given.status);
    }
    return seen;
  },

  /** Reloads in the middle of the answer, after so many characters, so many times at once. */
  async reload(open, origin, given) {
    const page = await chatOn(open, origin, given);
    await send(page, given.texts[0]);
    for (const [chars, times] of given.reloads) {
      await saysMore(page, chars);
      for (let n = 0; n < times; n += 1) await page.reload();
    }
    return saysAll(page, given.whole);
  },

  /** A second tab is opened in the middle of the answer. */
  async tabs(open, origin, given) {
    const page = await chatOn(open, origin, given);
    await send(page, given.texts[0]);
    await saysMore(page, given.chars);
    const tab = await open(origin);
    await tab.evaluate((given) => globalThis.begin(given), { id: given.id });
    const [first, second] = await Promise.all([saysAll(page, given.whole), saysAll(tab, given.whole)]);
    return { first, second };
  },

  /** Leaves in the middle, and comes back when it is over. */
  async leave(open, origin, given) {
    const page = await chatOn(open, origin, given);
    await send(page, given.texts[0]);
    await saysMore(page, given.chars);
    await page.close();
    const back = await open(origin);
    for (let count = 0; count < 2; ) {
      count = await back.evaluate((id) => fetch(`/api/chat/${id}/messages`).then((found) => found.json()).then((messages) => messages.length), given.id);
    }
    await back.evaluate((given) => globalThis.begin(given), { id: given.id });
    return saysAll(back, given.whole);
  },

  /** Stops it: the model hears of it, and the page sees an answer that is over. */
  async stop(open, origin, given) {
    const page = await chatOn(open, origin, given);
    await send(page, given.texts[0]);
    await saysMore(page, given.chars);
    const stopped = await page.evaluate((id) => fetch(`/api/chat/${id}/stop`, { method: "POST" }).then((found) => found.json()), given.id);
    return { ...(await settles(page)), stopped };
  },

  /** The connection is lost, however often; the page resumes. */
  async resume(open, origin, given) {
    const page = await chatOn(open, origin, given);
    await send(page, given.texts[0]);
    for (let lost = 0; ; lost += 1) {
      const seen = await until(page, `seen.status === 'error' || (seen.status === 'ready' && ${CHARS} === given)`, given.whole);
      if (seen.status === "ready") return { ...seen, lost };
      await page.evaluate(() => globalThis.chat.resumeStream());
    }
  },

  /** Wants another answer. */
  async regenerate(open, origin, given) {
    const page = await chatOn(open, origin, given);
    await send(page, given.texts[0]);
    await finishes(page, 1);
    const first = await settles(page);
    await page.evaluate(() => void globalThis.chat.regenerate());
    await finishes(page, 2);
    return { first, second: await settles(page) };
  },
};

const rest = process.argv.slice(2);
await browse("chat.jsx", async (open) => {
  const cases = [];
  for (let n = 0; n < rest.length; n += 3) {
    const [what, url, given] = [rest[n], rest[n + 1], JSON.parse(rest[n + 2])];
    // Pages of one browser share nothing but the process: each chat has a name of its own.
    cases.push(
      DOINGS[what](open, url, given).catch((error) => {
        throw new Error(`${what}: ${error.message}`);
      }),
    );
  }
  for (const seen of await Promise.all(cases)) console.log(JSON.stringify(seen));
});
