/**
 * A backend with its own users between browsers and Tailrace, on Express.
 *
 *     npm install && npm start      then open http://localhost:3000 as ada, password lovelace
 *
 * It holds the key (TAILRACE_KEY) of the gateway at TAILRACE_URL, and writes the user into each turn. Kill it
 * in the middle of an answer and start it again: the page goes on where it was.
 */
import { timingSafeEqual } from "node:crypto";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import express from "express";

const PASSWORDS = new Map([["ada", "lovelace"], ["eve", "moneypenny"]]); // yours
const { TAILRACE_URL = "http://127.0.0.1:8000", TAILRACE_KEY = "none", PORT = 3000 } = process.env;
// The cursor, and how Tailrace recognises an EventSource, also that of Safari.
const PASSED_ON = ["last-event-id", "accept", "cache-control", "user-agent"];
const PAGE = new URL("../eventsource.html", import.meta.url).pathname;

/** Returns Tailrace's response, or null if Tailrace cannot be reached. */
const tailrace = (path, { headers, ...init } = {}) =>
  fetch(TAILRACE_URL + path, { ...init, headers: { authorization: `Bearer ${TAILRACE_KEY}`, ...headers } }).catch(() => null);

/** Returns the JSON of a response, or null if the connection was lost. */
const jsonOf = async (answer) => (answer ? answer.json().catch(() => null) : null);

const isTemporary = (answer) => !answer || answer.status >= 500 || answer.status === 429;

/** Sets `request.user`. Replace it by your login. */
function authenticate(request, response, next) {
  const [, encoded = ""] = (request.get("authorization") ?? "").split(" ");
  const [name, ...rest] = Buffer.from(encoded, "base64").toString().split(":");
  const [given, expected] = [Buffer.from(rest.join(":")), Buffer.from(PASSWORDS.get(name) ?? "")];
  if (!expected.length || given.length !== expected.length || !timingSafeEqual(given, expected))
    return response.set("WWW-Authenticate", "Basic").sendStatus(401);
  request.user = name;
  next();
}

const app = express();
app.use(authenticate, express.json());

app.get("/", (request, response) => response.sendFile(PAGE));

// Passes on only what a user may choose.
app.post("/v1/turns", async (request, response) => {
  const key = request.get("idempotency-key");
  const needsKey = { error: { message: "send an Idempotency-Key, so that a repeated question is paid once" } };
  if (!key) return response.status(400).json(needsKey);
  const accepted = await tailrace("/v1/turns", {
    method: "POST",
    // No encoded name has a colon, so two users never have the same key.
    headers: { "content-type": "application/json", "idempotency-key": `${encodeURIComponent(request.user)}:${key}` },
    body: JSON.stringify({ message: request.body?.message, user: request.user }),
  });
  const answer = await jsonOf(accepted);
  if (!answer) return response.status(502).json({ error: { message: "Tailrace cannot be reached: try again" } });
  response.status(accepted.status).json(answer);
});

// Passes the stream on, only to the user of the turn.
app.get("/v1/turns/:turn/events", async (request, response) => {
  const path = `/v1/turns/${encodeURIComponent(request.params.turn)}`;
  const record = await tailrace(path);
  const turn = await jsonOf(record);
  if (!turn || isTemporary(record)) return comeBack(response, record);
  if (!record.ok || turn.user !== request.user) return response.sendStatus(404);
  const leaving = new AbortController();
  response.on("close", () => leaving.abort());
  const passedOn = Object.fromEntries(PASSED_ON.map((name) => [name, request.get(name)]).filter(([, value]) => value));
  const stream = await tailrace(`${path}/events`, { signal: leaving.signal, headers: passedOn });
  if (isTemporary(stream)) return comeBack(response, stream);
  // nginx must not collect the events.
  const headers = { "cache-control": "no-store", "x-accel-buffering": "no" };
  response.status(stream.status).set({ "content-type": stream.headers.get("content-type"), ...headers });
  response.flushHeaders();
  if (stream.body) await pipeline(Readable.fromWeb(stream.body), response).catch(() => {}); // either side has left
  else response.end();
});

/** An EventSource gives up after any status but 200. After 200, it reconnects with the id of its last event. */
function comeBack(response, refusal) {
  const waitS = refusal?.headers.get("retry-after") ?? 1;
  response.type("text/event-stream").end(`retry: ${1000 * waitS}\n\n`);
}

// Without this, Express answers with a stack trace.
app.use((error, request, response, next) => {
  if (response.headersSent) return next(error);
  if (!(error.status < 500)) console.error(error);
  response.status(error.status ?? 500).json({ error: { message: error.expose ? error.message : "internal error" } });
});

app.listen(PORT, "127.0.0.1", () => console.log(`http://localhost:${PORT}`));
