// Requests of pages in Chromium to a gateway: `browser-auth.mjs WHAT URL …`. Prints one line for each page, in order.
import { browse } from "./chromium.mjs";

const [what, gateway, ...rest] = process.argv.slice(2);
const say = (result) => console.log(JSON.stringify(result));

/** Asks for a turn with a key, from a page; what its script may see of the answer. */
const ask = async ([gateway, key]) => {
  const headers = { authorization: `Bearer ${key}`, "content-type": "application/json", "x-own": "1" };
  const body = JSON.stringify({ message: "#sim words=1 rate=0" });
  try {
    const answer = await fetch(`${gateway}/v1/turns`, { method: "POST", headers, body });
    const turn = answer.headers.get("tailrace-turn");
    const deleted = await fetch(`${gateway}/v1/turns/NONE`, { method: "DELETE", headers });
    return { status: answer.status, isTurnSeen: turn === (await answer.json()).turn, deleted: deleted.status };
  } catch (error) {
    return { refused: error.name };
  }
};

const CASES = {
  // `cors URL KEY ORIGIN …`: a page of each origin, and then a sandboxed one, whose origin is `null`.
  async cors(open, key, ...origins) {
    for (const origin of origins) say(await (await open(origin)).evaluate(ask, [gateway, key]));
    const page = await open(origins[0]);
    const script = `(${ask})(${JSON.stringify([gateway, key])}).then((seen) => parent.postMessage(seen, "*"))`;
    say(
      await page.evaluate((script) => {
        const heard = new Promise((resolve) => addEventListener("message", ({ data }) => resolve(data)));
        const frame = document.createElement("iframe");
        frame.sandbox = "allow-scripts";
        frame.srcdoc = `<script>${script}<\/script>`;
        document.body.append(frame);
        return heard;
      }, script),
    );
  },

  // `ticket URL ORIGIN EVENTS`: a page of that origin reads with an EventSource, and then tries the same URL again.
  async ticket(open, origin, events) {
    const page = await open(origin);
    const read = (url) => globalThis.CLIENTS.EventSource(url).catch((error) => ({ refused: error.message }));
    say(await page.evaluate(read, gateway + events));
    say(await page.evaluate(read, gateway + events));
  },

  // `login URL KEY OTHER`: in, what a script sees, two tabs at once, a page elsewhere, out.
  async login(open, key, other) {
    // Tabs of one browser share their cookies.
    const context = await (await open(gateway)).context().browser().newContext();
    const [first, second, foreign] = [await context.newPage(), await context.newPage(), await context.newPage()];
    // A page of the gateway's origin, made here: on its own ones nothing runs.
    const html = { contentType: "text/html", body: "<!doctype html>" };
    await context.route(`${gateway}/client.html`, (route) => route.fulfill(html));
    for (const page of [first, second]) await page.goto(`${gateway}/client.html`);
    const post = async ([url, key]) => {
      const answer = await fetch(url, { method: "POST", headers: key ? { authorization: `Bearer ${key}` } : {} });
      return { status: answer.status, body: answer.status === 204 ? {} : await answer.json() };
    };
    const look = async ([url, token]) => {
      const answer = await fetch(url, { headers: token ? { authorization: `Bearer ${token}` } : {} });
      return answer.status;
    };
    const refresh = [`${gateway}/v1/login/refresh`, null];
    const login = await first.evaluate(post, [`${gateway}/v1/login`, key]);
    const seen = await first.evaluate(() => document.cookie);
    const tabs = await Promise.all([first.evaluate(post, refresh), second.evaluate(post, refresh)]);
    const looked = await second.evaluate(look, [`${gateway}/v1/turns/NONE`, tabs[1].body.access_token]);
    const alone = await second.evaluate(look, [`${gateway}/v1/turns/NONE`, null]);
    const after = await first.evaluate(post, refresh);
    await foreign.route(`${other}/`, (route) => route.fulfill(html));
    await foreign.goto(`${other}/`);
    const crossed = await foreign.evaluate(async (url) => {
      const init = { method: "POST", credentials: "include", mode: "no-cors" };
      await fetch(url, init);
      return "sent";
    }, `${gateway}/v1/logout`);
    const still = await first.evaluate(post, refresh);
    const out = await first.evaluate(post, [`${gateway}/v1/logout`, null]);
    const over = await first.evaluate(post, refresh);
    say({
      login: login.status,
      seen,
      tabs: tabs.map((tab) => tab.status),
      looked,
      alone,
      after: after.status,
      crossed,
      still: still.status,
      out: out.status,
      over: over.status,
    });
  },
};

await browse("page.mjs", (open) => CASES[what](open, ...rest));
