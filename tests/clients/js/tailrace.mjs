// web/tailrace.js besides what the client matrix tests: `tailrace.mjs URL KEY`. Prints one line with what each step gave.
import { ask, follow, request, resume, TailraceError } from "../../../web/tailrace.js";

const [url, key] = process.argv.slice(2);
const options = { url, key };
const LONG = { message: "#sim words=4000 rate=100" };

/** Returns the name of the error with which a promise is rejected. */
const failure = (promise) => promise.then(() => null, (error) => [error.name, error.status ?? null, error.status ? error.code : null]);

// To leave the loop stops reading, and the turn goes on.
const left = ask(LONG, options);
let before = "";
for await (const event of left) {
  if (event.type === "delta") before += event.text;
  if (before.length > 60) break;
}
const stopped = await failure(left.done);
const again = resume(left.turn, { ...options, after: left.cursor });
for await (const event of again) if (event.type === "delta") break;
const running = await (await fetch(`${url}/v1/turns/${left.turn}`, { headers: { authorization: `Bearer ${key}` } })).json();

// A reader of the whole turn sees the cancellation.
const whole = resume(left.turn, options);
const cancelled = await whole.cancel();
const end = await whole.done;

// After the end nothing comes.
const nothing = await resume(left.turn, { ...options, after: whole.cursor }).done;

// The loop and `onEvent` receive each event; a second loop would take events from the first one.
const [called, looped] = [[], []];
const following = follow(`/v1/sessions/${end.session}/events`, { ...options, onEvent: ({ type }) => called.push(type) });
for await (const { type } of following) {
  looped.push(type);
  if (type === "session") ask({ message: "#sim words=2", session: end.session }, options);
  if (type === "done") break;
}
const loop = async (stream) => {
  for await (const event of stream) return event.type;
};
const unknownSession = follow("/v1/sessions/nowhere/events", options);

const leaving = new AbortController();
const aborted = ask(LONG, { ...options, signal: leaving.signal, onText: () => leaving.abort() });
const refused = failure(ask({ message: "x", colour: "blue" }, options).done);

/** Asks with headers that need a token: the first request for it fails with `error`. */
const withToken = (error) => {
  const tokens = [() => Promise.reject(error), () => ({ authorization: `Bearer ${key}` })];
  return ask("#sim words=1", { url, headers: () => (tokens.length > 1 ? tokens.shift() : tokens[0])() }).done;
};

// A question whose upload takes longer than the silence after which a connection is lost. Its bytes count, not its characters.
let uploads = 0;
const uploadSlowly = async (url, init) => {
  if (init.method === "POST") {
    uploads += 1;
    await new Promise((resolve) => setTimeout(resolve, 3000));
  }
  return fetch(url, init);
};
const uploading = ask({ message: "#sim words=1", system: "\u20ac".repeat(4_500) }, { ...options, silenceMs: 500, fetch: uploadSlowly });
const { outcome: uploaded } = await uploading.done;

const post = { method: "POST", headers: new Headers({ "content-type": "application/json", "idempotency-key": "once" }), body: "{}" };
const [made, repeated] = [await request("/v1/sessions", options, post), await request("/v1/sessions", options, post)];
const page = await failure(request("/docs", options));

// The first answer is lost between a server of Next.js and the gateway.
let away = 1;
const throughNext = async (url, init) => {
  const response = await fetch(url, init);
  return away-- > 0 ? new Response("Internal Server Error", { status: 500 }) : response;
};
const { outcome: throughProxy } = await ask("#sim words=1", { ...options, fetch: throughNext }).done;
console.log(
  JSON.stringify({
    uploaded: [uploaded, uploads],
    isMadeOnce: made.session === repeated.session,
    page,
    throughProxy,
    stopped,
    isRunning: running.outcome,
    cancelled: cancelled.outcome,
    end: end.outcome,
    isWhole: end.text === cancelled.text && end.text.startsWith(before),
    nothing: [nothing.outcome, nothing.session === end.session, nothing.cost_usd === end.cost_usd],
    followed: [[...new Set(looped)], String(called) === String(looped), following.state],
    followedAgain: await failure(loop(following)),
    followedNothing: await failure(loop(unknownSession)),
    aborted: await failure(aborted.done),
    refused: await refused,
    unknown: await failure(resume("01a1fe35-0000-7000-8000-000000000000", options).done),
    tokenLost: (await withToken(new TypeError("Failed to fetch"))).outcome,
    tokenRefused: await failure(withToken(new RangeError("log in"))),
    isError: new TailraceError("x") instanceof Error,
  }),
);
await resume(aborted.turn, options).cancel();
process.exit();
