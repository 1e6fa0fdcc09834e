// The package as users install it, in a folder with it in node_modules: `packed.mjs URL KEY EXAMPLE`. Prints one line.
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { ask, resume, TailraceError } from "tailrace";
import { useSession, useSSE, useTurn } from "tailrace/react";
import { cutOnce } from "./cut-once.mjs";

const [url, key, example] = process.argv.slice(2);
const { proxy } = await import(example);

/** Reads an answer through the proxy route. The first response is cut in the middle; other users' requests are refused. */
const base = "/api/tailrace";
const isAda = async (request) => request.headers.get("cookie") === "user=ada" && (request.method === "GET" || (await request.json()).message !== "");
const route = proxy({ base, url, key, mayUse: isAda });
const cursors = [];
const asking = (cookie) => ({ url: `http://app.invalid${base}`, headers: { cookie }, fetch: cutOnce(route, cursors) });
const { text, turn } = await ask("#sim words=60 rate=100", asking("user=ada")).done;
const [first, second] = cursors;
const refused = await ask("x", asking("user=eve")).done.catch((error) => [error instanceof TailraceError, error.status]);
const listed = await route(new Request(`http://app.invalid${base}/v1/turns`, { headers: { cookie: "user=ada" } }));
const beyond = await route(new Request(`http://app.invalid${base}/v1/turns/../keys`, { headers: { cookie: "user=ada" } }));

/** A message into an answer passes the route, too. */
let sent;
const steer = (event, answer) => event.type === "delta" && (sent ??= answer.steer("#sim words=3 rate=0"));
const steered = await ask("#sim words=4000 rate=50", { ...asking("user=ada"), fetch: (address, init) => route(new Request(address, init)), onEvent: steer }).done;

/** A stream that has nothing more: the cursor is of another turn, which has steered the one that is named. */
const successor = "s".repeat(36);
const record = (address) => Response.json({ outcome: address.endsWith(successor) ? "completed" : "cancelled" });
const nothing = async (address) => (address.includes("/events") ? new Response(null, { status: 204, headers: { "tailrace-turn": successor } }) : record(address));
const ended = await resume("first", { url, after: "9", fetch: nothing }).done;

/** A gateway that is busy for so many seconds, and then answers. The timers fire at once, and note the wait. */
const waits = [];
const { setTimeout } = globalThis;
globalThis.setTimeout = (work, ms) => (waits.push(ms), setTimeout(work, ms === 20_000 ? 0 : ms));
const busyFor = (seconds) => {
  const responses = [Response.json({}, { status: 503, headers: { "retry-after": seconds } })];
  return async () => responses.pop() ?? fetch(`${url}/v1/turns/${turn}/events`, { headers: { authorization: `Bearer ${key}` } });
};
const waited = await ask("x", { url, fetch: busyFor("20") }).done;
const tooLong = await ask("x", { url, fetch: busyFor("31") }).done.catch((error) => [error.status, error.retryAfterS]);
globalThis.setTimeout = setTimeout;

/** A server renders the hooks, and asks nothing. */
function Page() {
  return [useTurn({ url }).state, useSession("s", { url }).state, useSSE(`${url}/x`).status].join(" ");
}
const rendered = renderToString(createElement(Page));
console.log(
  JSON.stringify({
    text,
    turn,
    resumed: [first, second?.length > 0],
    refused,
    listed: listed.status,
    beyond: beyond.status,
    steered: steered.text,
    ended: [ended.turn, ended.outcome],
    waited: waited.text,
    hasWaited: waits.includes(20_000),
    tooLong,
    rendered,
  }),
);
