// Readers of left-page.jsx on pages with a service worker, all at once: `service-worker.mjs GATEWAY JSON FUNCTION`, where JSON has the
// script of each page's worker and the names of its readers, and FUNCTION is `read` of docs/API.md. Each reads a turn of its own, `#sim words=60`. The first connection of a turn ends
// cleanly, and the second one is cut. Prints for each page what its readers show in the end, and the warnings of the console.
import { createServer, request } from "node:http";
import { browse } from "./chromium.mjs";

const [gateway, given, documented] = process.argv.slice(2);
// Fewer than a third of an answer.
const BYTES = 900;

/** Returns the origin of a server with the worker, which passes all other requests on to the gateway. */
async function serve(worker) {
  const opened = {};
  const server = createServer((incoming, outgoing) => {
    const { headers, method, url } = incoming;
    if (url === "/worker.js") return outgoing.writeHead(200, { "content-type": "text/javascript" }).end(worker);
    const [turn] = /[0-9a-f-]{36}(?=[/](events|stream))/.exec(url) ?? [];
    if (turn) opened[turn] = (opened[turn] ?? 0) + 1;
    const end = { 1: () => outgoing.end(), 2: () => outgoing.destroy() }[opened[turn]];
    let rest = BYTES;
    const going = request(new URL(url, gateway), { method, headers }, (response) => {
      outgoing.writeHead(response.statusCode, response.headers);
      response.on("data", (chunk) => {
        outgoing.write(end ? chunk.subarray(0, Math.max(0, rest)) : chunk);
        rest -= chunk.length;
        // Later, because a cut may throw away what was written just before it.
        if (end && rest <= 0) setTimeout(end, 50);
      });
      response.on("end", () => outgoing.end());
    });
    going.on("error", () => outgoing.destroy());
    outgoing.on("close", () => going.destroy());
    incoming.pipe(going);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  server.unref();
  return `http://127.0.0.1:${server.address().port}`;
}

async function ask() {
  const init = { method: "POST", headers: { "content-type": "application/json" }, body: '{"message":"#sim words=60 rate=30"}' };
  return (await (await fetch(`${gateway}/v1/turns`, init)).json()).turn;
}

async function read(open, worker, readers) {
  const page = await open(await serve(worker));
  const warnings = [];
  page.on("console", (message) => message.type() === "warning" && warnings.push(message.text()));
  await page.evaluate(async (documented) => {
    globalThis.read = new Function(`${documented}; return read;`)();
    const controlled = new Promise((resolve) => navigator.serviceWorker.addEventListener("controllerchange", resolve));
    await navigator.serviceWorker.register("worker.js");
    await controlled;
  }, documented);
  const turns = await Promise.all(readers.map(ask));
  await page.evaluate(([readers, turns]) => readers.forEach((reader, at) => globalThis.begin(null, reader, [turns[at]])), [readers, turns]);
  // An EventSource that is closed for good shows no more.
  const isRead = (turns) => turns.every((turn) => globalThis.shown()[turn]?.endsWith("w000059") || globalThis.shown()[`closed ${turn}`]);
  await page.waitForFunction(isRead, turns, { polling: 50 });
  const texts = await page.evaluate((turns) => turns.map((turn) => globalThis.shown()[turn]), turns);
  return { texts: Object.fromEntries(readers.map((reader, at) => [reader, texts[at]])), warnings };
}

const readAll = (open) => Promise.all(JSON.parse(given).map(({ worker, readers }) => read(open, worker, readers)));
for (const seen of await browse("left-page.jsx", readAll)) console.log(JSON.stringify(seen));
