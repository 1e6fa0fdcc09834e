// Pages in Chromium whose user follows a link and comes back, each with another reader of left-page.jsx, all at once:
// `left-page.mjs URL KEY SECONDS JSON`, where JSON has the readers and the bodies of the two turns of each. The first one is cancelled
// when its reader leaves. Prints for each reader its turns, after how many seconds the first one was cancelled, at most `SECONDS`, and
// what the page shows in the end. Then a line for each client whose POST has had no response when the user leaves: what each of its
// POSTs had for a key, and the answer.
import { browse } from "./chromium.mjs";

const [url, key, seconds, given] = process.argv.slice(2);
const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
const recordOf = async (turn) => (await fetch(`${url}/v1/turns/${turn}`, { headers })).json();
const post = async (body) => (await (await fetch(`${url}/v1/turns`, { method: "POST", headers, body: JSON.stringify(body) })).json()).turn;

async function goElsewhere(page) {
  await page.route(`${url}/elsewhere.html`, (route) => route.fulfill({ contentType: "text/html", body: "elsewhere" }));
  await page.evaluate(() => (location.href = "elsewhere.html"));
  await page.waitForURL("**/elsewhere.html");
}

/** Not goBack(), which waits for the event `load`: a page of the cache has none. */
async function goBack(page) {
  await page.evaluate(() => history.back());
  await page.waitForURL("**/client.html", { waitUntil: "commit" });
}

async function leave(open, reader, bodies) {
  const page = await open(url);
  // Not before: on a busy machine, a browser takes longer to start than a turn takes, and an ended turn has no stream to resume.
  const turns = await Promise.all(bodies.map(post));
  await page.evaluate(([key, reader, turns]) => globalThis.begin(key, reader, turns), [key, reader, turns]);
  const isReading = (turns) => turns.every((turn) => globalThis.shown()[turn]?.length > 20);
  await page.waitForFunction(isReading, turns, { polling: 50 });
  const left = performance.now();
  await goElsewhere(page);
  const elapsed = () => (performance.now() - left) / 1000;
  while ((await recordOf(turns[0])).outcome === "running" && elapsed() < seconds) await new Promise((resolve) => setTimeout(resolve, 200));
  const cancelledAfter = elapsed();
  await goBack(page);
  // A page that was loaded anew would have read nothing.
  const isRestored = await page.evaluate((turns) => Boolean(globalThis.shown?.()[turns[1]]), turns);
  if (!isRestored) return { reader, turns, cancelledAfter, isRestored, texts: [] };
  const isWhole = ([turn, text]) => globalThis.shown()[turn]?.length >= text.length;
  while ((await recordOf(turns[1])).outcome === "running") await new Promise((resolve) => setTimeout(resolve, 200));
  await page.waitForFunction(isWhole, [turns[1], (await recordOf(turns[1])).text], { polling: 50 });
  return { reader, turns, cancelledAfter, isRestored, texts: await page.evaluate((turns) => turns.map((turn) => globalThis.shown()[turn]), turns) };
}

/** The first POST gets no response, and the user leaves. */
async function leaveAsking(open, asker) {
  const page = await open(url);
  const keys = [];
  const failed = page.waitForEvent("requestfailed");
  await page.route(/\/v1\/turns$|\/api\/chat$/, (route) => {
    const request = route.request();
    keys.push(request.headers()["idempotency-key"] ?? request.postDataJSON().idempotency_key);
    if (keys.length > 1) return route.continue();
  });
  const sent = page.waitForRequest(/\/v1\/turns$|\/api\/chat$/);
  await page.evaluate(([key, asker]) => globalThis.ask(key, asker, "#sim words=20"), [key, asker]);
  await sent;
  await goElsewhere(page);
  await failed;
  await goBack(page);
  await page.waitForFunction(() => globalThis.shown?.().asked?.endsWith("w000019"), undefined, { polling: 50 }).catch(() => {});
  return { asker, keys, text: await page.evaluate(() => globalThis.shown?.().asked) };
}

const leaveAll = (open) => {
  const { readers, bodies } = JSON.parse(given);
  const left = readers.map((reader) => leave(open, reader, bodies));
  return Promise.all([...left, ...["tailrace.js", "TailraceChatTransport"].map((asker) => leaveAsking(open, asker))]);
};
// Playwright switches off the back/forward cache.
for (const seen of await browse("left-page.jsx", leaveAll, { ignoreDefaultArgs: ["--disable-back-forward-cache"] })) console.log(JSON.stringify(seen));
