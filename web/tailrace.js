/**
 * Asks Tailrace and reads the answer once, over as many connections as it takes. For browsers, Node 20 and later, and edge
 * runtimes. It imports nothing; the types are in tailrace.d.ts.
 *
 *     const answer = ask("Why is the sky blue?");
 *     for await (const event of answer) if (event.type === "delta") show(event.text);
 */

const WAIT_MS = 250;
const WAIT_MAX_MS = 5000;
// Tries in a row that bring no event: about 45 seconds.
const TRIES_MAX = 12;
// The gateway sends a comment after 15 seconds of silence. A connection that is silent for longer is lost.
const SILENCE_MS = 40_000;
// The gateway refuses a body that arrives with less than 2,000 bytes a second, or later than after two minutes.
const UPLOAD_BYTES_PER_MS = 2;
const UPLOAD_MAX_MS = 120_000;
// The gateway, or a proxy before it, is busy or away.
const STATUSES_TO_RETRY = [429, 502, 503, 504];
const RETRY_AFTER_MAX_S = 30;
const CURSOR_LOST = "tailrace: an answer began again. A service worker or a server in between loses Last-Event-ID and ?lastEventId=";
let isWarned = false;

/** A refusal, with `status` and `code`, or a connection that is lost for good. */
export class TailraceError extends Error {
  name = "TailraceError";

  constructor(message, { cause, ...fields } = {}) {
    super(message, { cause });
    Object.assign(this, fields);
  }
}

/** Starts a turn: `question` is the message, or the body of `POST /v1/turns`. */
export function ask(question, options = {}) {
  const body = JSON.stringify(typeof question === "string" ? { message: question } : question);
  // With the key, a POST that is repeated after a cut starts no second turn.
  const key = options.idempotencyKey ?? randomName();
  return new Answer(options, { method: "POST", headers: { "content-type": "application/json", "idempotency-key": key }, body });
}

/** Reads a turn from its start, or after `options.after`, the `cursor` of an event. */
export function resume(turn, options = {}) {
  return new Answer(options, null, turn);
}

/** Reads any stream of JSON events until it is closed or the server answers 204. Its events are for one loop or `onEvent`. */
export function follow(path, options = {}) {
  return new Answer(options, null, null, path);
}

/** Sends a request and returns its JSON. */
export function request(path, options = {}, init = {}) {
  return persist(options, async () => jsonOf(await send(options, path, init, options.signal)), options.signal);
}

/** Sends a decision about a tool call. */
export function decide(session, call, decision, options = {}) {
  const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(decision) };
  return request(`/v1/sessions/${[session, "calls", call].map(encodeURIComponent).join("/")}`, options, init);
}

/** An answer that is read from now on. */
class Answer {
  turn = null;
  session = null;
  model = null;
  text = "";
  /** `connecting`, `live`, `reconnecting` or `ended`. */
  state = "connecting";
  cursor;
  done;
  #options;
  #post;
  #path;
  /** All events of a turn, for any number of loops; of another stream, those that the only loop has yet to yield. */
  #events = [];
  #isIterated = false;
  #texts = [];
  /** The cursor with which this connection began. */
  #sent = "";
  #leaving = new AbortController();
  #started = deferred();
  #changed = deferred();

  constructor(options, post, turn, path) {
    const { after = "", signal } = options;
    this.#options = options;
    this.#post = post;
    this.#path = path;
    this.cursor = String(after);
    address(options, path ?? "/"); // a wrong address throws here, and is not taken for a lost connection
    if (turn) this.#start(turn);
    const leave = () => this.#leaving.abort(signal.reason);
    if (signal?.aborted) leave();
    signal?.addEventListener("abort", leave);
    const read = (progress) => this.#read(progress);
    this.done = persist(options, read, this.#leaving.signal, () => this.#become("reconnecting")).finally(() => {
      signal?.removeEventListener("abort", leave);
      this.#become("ended");
      this.#changed.resolve();
    });
    // A caller that only iterates receives the error there.
    this.done.catch(this.#started.reject);
  }

  /** Yields each event once, with its `cursor`. To leave the loop closes the connection; the turn goes on. */
  [Symbol.asyncIterator]() {
    if (this.#path && this.#isIterated) throw new TypeError("tailrace: a stream of follow() has one loop");
    this.#isIterated = true;
    return this.#iterate();
  }

  async *#iterate() {
    try {
      for (let next = 0; ; ) {
        while (next < this.#events.length) yield this.#path ? this.#events.shift() : this.#events[next++];
        if (this.state === "ended") break;
        await this.#changed.promise;
      }
      await this.done;
    } finally {
      this.close();
    }
  }

  /** Stops reading. The turn goes on, and `resume(turn, { after: cursor })` reads the rest. */
  close() {
    this.#leaving.abort(new DOMException("the answer was closed", "AbortError"));
  }

  /** Ends the turn, and returns it as `GET /v1/turns/{turn}` does. Its text so far remains. */
  async cancel() {
    return this.#act("cancel", { method: "POST" });
  }

  /** Puts a message into the answer, which is read on here: `steered` comes, and then the events of its answer. */
  async steer(message, { at = "now", idempotencyKey = randomName() } = {}) {
    const headers = { "content-type": "application/json", "idempotency-key": idempotencyKey };
    return this.#act("steer", { method: "POST", headers, body: JSON.stringify({ message, at }) });
  }

  async #act(action, init) {
    await this.#started.promise;
    return request(`/v1/turns/${this.turn}/${action}`, { ...this.#options, signal: undefined }, init);
  }

  /** Reads one connection. Returns the turn's end, or throws a temporary TailraceError. */
  async #read(progress) {
    const connection = new AbortController();
    const { signal } = connection;
    const drop = () => connection.abort();
    this.#leaving.signal.addEventListener("abort", drop, { signal });
    // Without a network nothing comes, and no error.
    globalThis.addEventListener?.("offline", drop, { signal });
    let [silence, shown] = [];
    // Chromium keeps a page that the user has left for a minute, with its connections.
    const hide = () => {
      shown = new Promise((resolve) => globalThis.addEventListener("pageshow", resolve, { once: true }));
      drop();
    };
    globalThis.addEventListener?.("pagehide", hide, { signal });
    const listen = (uploadMs = 0) => {
      clearTimeout(silence);
      silence = setTimeout(drop, (this.#options.silenceMs ?? SILENCE_MS) + uploadMs);
    };
    try {
      listen(this.turn || this.#path ? 0 : Math.min(UPLOAD_MAX_MS, new Blob([this.#post.body]).size / UPLOAD_BYTES_PER_MS));
      const response = await this.#open(signal);
      const turn = response.headers.get("tailrace-turn");
      // Headers may be cut.
      if (turn?.length === 36) this.#start(turn);
      if (response.status === 204) return this.#end(this.#path ? { outcome: null } : await this.#readEnd(signal));
      const isStream = (response.headers.get("content-type") ?? "").startsWith("text/event-stream");
      if (!isStream || !response.body) throw connectionError(`status ${response.status} without a stream of events`);
      this.#become("live");
      return await this.#consume(response.body.getReader(), listen, progress);
    } catch (error) {
      if (!shown) throw error;
    } finally {
      clearTimeout(silence);
      connection.abort();
    }
    this.#become("reconnecting");
    await shown;
    this.#leaving.signal.throwIfAborted();
    return this.#read(progress);
  }

  #open(signal) {
    const accept = "text/event-stream";
    const path = this.#path ?? (this.turn && `/v1/turns/${this.turn}/events`);
    if (!path) return send(this.#options, "/v1/turns", { ...this.#post, headers: { ...this.#post.headers, accept } }, signal);
    const sent = (this.#sent = this.cursor);
    const headers = sent ? { accept, "last-event-id": sent } : { accept };
    // A service worker that requests the URL anew loses the header.
    const query = sent && `${path.includes("?") ? "&" : "?"}lastEventId=${encodeURIComponent(sent)}`;
    return send(this.#options, path + query, { headers, cache: "no-store" }, signal);
  }

  /** Takes the events of a stream (WHATWG HTML, section 9.2). An event counts when it is complete. */
  async #consume(reader, listen, progress) {
    const decoder = new TextDecoder();
    let [rest, data, id, name, waitMs] = ["", "", "", "", 0];
    for (;;) {
      const { done, value } = await reader.read().catch((cause) => {
        throw connectionError("the connection is lost", { cause, waitMs });
      });
      if (done) throw connectionError("the stream ended before the answer", { waitMs });
      listen();
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        // With `s`: `.` is U+2028 and U+2029, too, which end no line of a stream.
        const [, field, text] = /^(\w*): ?(.*)$/s.exec(line.replace(/\r$/, "")) ?? [];
        if (field === "data") data += data ? `\n${text}` : text;
        if (field === "id") id = text;
        if (field === "event") name = text;
        // A gateway that is busy sends nothing but the delay, and closes.
        if (field === "retry") waitMs = Number(text);
        if (line.trim()) continue;
        const [complete, isNamed] = [data, name && name !== "message"];
        if (id) this.cursor = id;
        data = id = name = "";
        if (!complete) continue;
        progress();
        waitMs = 0;
        if (isNamed) continue;
        const event = { ...JSON.parse(complete), cursor: this.cursor };
        this.#take(event);
        if (!this.#path && (event.type === "done" || event.type === "error")) {
          const { type, cursor, ...end } = event;
          return this.#end(type === "error" ? { outcome: "failed", ...end } : end);
        }
      }
    }
  }

  #take(event) {
    const { onEvent, onText } = this.#options;
    if (this.#path) {
      if (this.#isIterated || !onEvent) this.#pass(event);
      return onEvent?.(event, this);
    }
    if (event.type === "start") {
      // It is the first event of a turn. "0" is the cursor before it.
      if (this.#sent && this.#sent !== "0") {
        if (!isWarned) console.warn(CURSOR_LOST);
        isWarned = true;
        this.#take({ type: "reset", cursor: this.cursor });
      }
      this.session = event.session;
      this.model = event.model;
      this.#start(event.turn);
    }
    if (event.type === "delta") this.text = addText(this.#texts, event, this.text);
    if (event.type === "steered") this.#start(event.turn);
    if (event.type === "reset" || event.type === "steered") [this.text, this.#texts] = ["", []];
    this.#pass(event);
    onEvent?.(event, this);
    if (["delta", "reset", "steered"].includes(event.type)) onText?.(this.text, this);
  }

  /** Passes an event to the loops. */
  #pass(event) {
    this.#events.push(event);
    this.#changed.resolve();
    this.#changed = deferred();
  }

  /** Returns the end of a turn whose stream has nothing after the cursor. A proxy may refuse it. */
  async #readEnd(signal) {
    try {
      const response = await send(this.#options, `/v1/turns/${this.turn}`, { cache: "no-store" }, signal);
      const record = await jsonOf(response);
      this.session = record.session;
      this.model = record.model;
      const { outcome, stop_reason, usage, usage_is_estimated, cost_usd, schema_valid, answered_by, error } = record;
      return { outcome, stop_reason, usage, usage_is_estimated, cost_usd, schema_valid, answered_by, ...error };
    } catch (error) {
      if (error.isTemporary || !(error instanceof TailraceError)) throw error;
      return { outcome: null };
    }
  }

  #end(end) {
    const { turn, session, model, text } = this;
    return { turn, session, model, text, ...end };
  }

  #start(turn) {
    this.turn = turn;
    this.#started.resolve(turn);
  }

  #become(state) {
    if (this.state === state) return;
    this.state = state;
    this.#options.onState?.(state, this);
  }
}

/** Returns what `work` returns, after as many tries as it takes; `progress()` begins their count anew. */
async function persist({ triesMax = TRIES_MAX }, work, signal, onLost) {
  let tries = 0;
  for (;;) {
    try {
      signal?.throwIfAborted();
      return await work(() => (tries = 0));
    } catch (error) {
      signal?.throwIfAborted();
      tries += 1;
      if (!error.isTemporary || tries > triesMax) throw error;
      onLost?.();
      const waitMs = Math.min(WAIT_MAX_MS, WAIT_MS * 2 ** (tries - 1)) * (0.5 + Math.random());
      await sleep(Math.max(waitMs, error.waitMs ?? 0), signal);
    }
  }
}

/** Returns a response with a status of success. Throws TailraceError. */
export async function send(options, path, init, signal) {
  const { fetch = globalThis.fetch, key, headers: given } = options;
  const headers = new Headers(await headersOf(given));
  if (key) headers.set("authorization", `Bearer ${key}`);
  new Headers(init.headers).forEach((value, name) => headers.set(name, value));
  const response = await fetch(address(options, path), { ...init, headers, signal }).catch((cause) => {
    throw connectionError("the connection is lost", { cause });
  });
  if (response.ok) return response;
  const { status } = response;
  const error = errorOf(await textOf(response));
  const retryAfterS = Number(response.headers.get("retry-after")) || 0;
  // Next.js answers 500 while the gateway behind it is away. The gateway's own errors have a code.
  const isAway = STATUSES_TO_RETRY.includes(status) || (status === 500 && !error?.code);
  // A full log stays full for longer than a reader waits.
  const isTemporary = isAway && error?.code !== "log_full" && retryAfterS <= RETRY_AFTER_MAX_S;
  const fields = { status, code: error?.code, retryAfterS, waitMs: 1000 * retryAfterS, isTemporary };
  throw new TailraceError(error?.message ?? `status ${status}`, fields);
}

/** Returns the app's headers. A function may request a token, whose lost connection is a TypeError (Fetch standard). */
async function headersOf(given) {
  try {
    return typeof given === "function" ? await given() : given;
  } catch (cause) {
    throw cause instanceof TypeError ? connectionError("the connection is lost", { cause }) : cause;
  }
}

/** Returns the body of a response. Throws a temporary TailraceError if the connection is lost. */
function textOf(response) {
  return response.text().catch((cause) => {
    throw connectionError("the connection is lost", { cause });
  });
}

/** Returns the JSON of a response; null for one without a body. */
async function jsonOf(response) {
  const text = await textOf(response);
  if (response.status === 204) return null;
  try {
    return JSON.parse(text);
  } catch (cause) {
    // A browser takes a response for whole that was cut, even within its headers.
    const isText = response.headers.get("content-type")?.startsWith("text/");
    if (!isText) throw connectionError("the connection is lost", { cause });
    throw new TailraceError("the server sent no JSON", { cause, status: response.status });
  }
}

/** Returns the `error` of a refusal; a proxy sends other text. */
function errorOf(body) {
  try {
    return JSON.parse(body).error;
  } catch {
    return undefined;
  }
}

/** Adds a delta to the texts of the blocks; returns the answer's. */
export function addText(texts, { index = 0, text }, before) {
  texts[index] = (texts[index] ?? "") + text;
  return index < texts.length - 1 ? texts.join("") : before + text;
}

const address = ({ url }, path) => new URL((url ?? "").replace(/\/$/, "") + path, globalThis.location?.href).href;

const connectionError = (message, fields) => new TailraceError(message, { isTemporary: true, ...fields });

/** Returns a promise with the functions that settle it. Node 20 has no `Promise.withResolvers`. */
function deferred() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {});
  return made;
}

/** Returns a random name. Pages without TLS have no `crypto.randomUUID`. */
export function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Waits, less if the browser reports that it is online again, or until `signal` is aborted. */
function sleep(ms, signal) {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", wake);
      signal?.removeEventListener("abort", wake);
      resolve();
    };
    const timer = setTimeout(wake, ms);
    globalThis.addEventListener?.("online", wake);
    signal?.addEventListener("abort", wake);
  });
}
