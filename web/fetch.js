/**
 * A `fetch` for Anthropic's and OpenAI's SDKs: a streamed answer that is cut goes on after its last event. For Node 20 and later,
 * browsers and edge runtimes. It imports nothing; the types are in fetch.d.ts.
 *
 *     const client = new Anthropic({ baseURL: "http://localhost:8000", fetch: resumableFetch({ gateways: ["http://localhost:8001"] }) });
 *
 * The SDK does not see a cut. Any other request, and a server that is not Tailrace, get the given `fetch` as it is.
 */

const WAIT_MS = 250;
const WAIT_MAX_MS = 5000;
// Tries in a row that bring no event: about 45 seconds.
const TRIES_MAX = 12;
// The same for the first request, before the SDK repeats it itself.
const FIRST_TRIES_MAX = 4;
// The gateway sends a comment after 15 seconds of silence. A connection that is silent for longer is lost.
const SILENCE_MS = 40_000;
const STATUSES_TO_RETRY = [429, 502, 503, 504];
// A gateway that drains or a proxy without a gateway: another gateway may accept the same POST.
const STATUSES_OF_ABSENCE = [502, 503, 504];
const RETRY_AFTER_MAX_S = 30;
// Headers of the POST that a GET of its turn does not have.
const OF_THE_POST = ["content-length", "content-type", "idempotency-key"];
// Requests that have failed, whose SDK may repeat them.
const KEYS_MAX = 256;
// Comments, and events that hold the connection open.
const HEARTBEAT = /^(:|event: ping\n|retry:)/;

/** What an event is to a reader that may be cut. Without a `cursor`, it belongs to the next event that has one. */
const ANTHROPIC = {
  path: (turn, after) => `/v1/turns/${encodeURIComponent(turn)}/events?dialect=anthropic${after === null ? "" : `&after=${after}`}`,
  meaning: ({ id, event }) => ({ cursor: id, kind: { message_start: "begin", message_stop: "whole", error: "failed" }[event] }),
};
const chat = (dialect) => ({
  path: (turn, after) => `/v1/turns/${encodeURIComponent(turn)}/events?dialect=${dialect}${after === null ? "" : `&after=${after}`}`,
  rest: "data: [DONE]\n\n",
  meaning({ data }) {
    if (data === "[DONE]") return { kind: "whole" };
    const { cursor, error, choices } = JSON.parse(data);
    return { cursor, kind: error ? "failed" : choices?.[0]?.delta?.role && "begin" };
  },
});
const RESPONSES = {
  path: (turn, after) => `/v1/responses/resp_${encodeURIComponent(turn)}?stream=true${after === null ? "" : `&starting_after=${after}`}`,
  kinds: {
    "response.created": "begin",
    "response.completed": "whole",
    "response.incomplete": "whole",
    "response.failed": "whole",
    error: "failed",
  },
  meaning({ data }) {
    const { type, sequence_number: cursor } = JSON.parse(data);
    return { cursor, kind: this.kinds[type] };
  },
};
const CHAT = chat("openai-chat");
const CHAT_USAGE = chat("openai-chat-usage");
const PATHS = { "/v1/messages": ANTHROPIC, "/v1/chat/completions": CHAT, "/v1/responses": RESPONSES };

/**
 * Returns the `fetch`. `gateways` are the base URLs of other gateways with the same log; they receive the credentials of the
 * requests. After `triesMax` tries in a row without an event, the SDK gets the error of the cut.
 */
export function resumableFetch({ gateways = [], fetch = globalThis.fetch, triesMax = TRIES_MAX } = {}) {
  const others = gateways.map((url) => new URL(url).href.replace(/\/+$/, "").replace(/\/v1$/, ""));
  const unanswered = [];
  return async (input, init = {}) => {
    const found = typeof input === "string" || input instanceof URL ? findDialect(new URL(input), init) : null;
    if (found === null) return fetch(input, init);
    const { url, own, dialect, isPost } = found;
    const bases = [own, ...others.filter((one) => one !== own)];
    const headers = new Headers(init.headers);
    const isOurs = isPost && !headers.has("idempotency-key");
    const request = JSON.stringify([url.href, headers.get("authorization"), headers.get("x-api-key"), init.body]);
    if (isOurs) headers.set("idempotency-key", chooseKey(unanswered, headers, request));
    let opened;
    try {
      opened = await open(fetch, url, { ...init, headers }, bases, triesMax);
    } finally {
      if (isOurs && !opened?.response.ok) {
        unanswered.push({ request, key: headers.get("idempotency-key") });
        if (unanswered.length > KEYS_MAX) unanswered.shift();
      }
    }
    const { response, number } = opened;
    const turn = response.headers.get("tailrace-turn");
    if (turn === null || !isStream(response)) return response;
    for (const name of OF_THE_POST) headers.delete(name);
    headers.set("accept", "text/event-stream");
    const order = [...bases.slice(number), ...bases.slice(0, number)];
    const after = url.searchParams.get("starting_after");
    const answer = new Answer(fetch, { ...init, method: "GET", body: undefined, headers }, dialect, turn, order, triesMax, after, response);
    const resumed = new Response(answer.stream(), response);
    Object.defineProperty(resumed, "url", { value: response.url });
    return resumed;
  };
}

/** Returns the dialect of a request for a stream; null for any other request. */
function findDialect(url, { method = "GET", body }) {
  const at = url.pathname.lastIndexOf("/v1/");
  const path = url.pathname.slice(Math.max(at, 0));
  const own = url.origin + url.pathname.slice(0, Math.max(at, 0));
  if (method.toUpperCase() === "GET" && /^\/v1\/responses\/[^/]+$/.test(path))
    return url.searchParams.get("stream") === "true" ? { url, own, dialect: RESPONSES, isPost: false } : null;
  // Another body is an iterator or a stream, which cannot be sent twice.
  if (method.toUpperCase() !== "POST" || !Object.hasOwn(PATHS, path) || typeof body !== "string") return null;
  let asked;
  try {
    asked = JSON.parse(body);
  } catch {
    return null;
  }
  if (asked?.stream !== true) return null;
  const dialect = PATHS[path] === CHAT && asked.stream_options?.include_usage ? CHAT_USAGE : PATHS[path];
  return { url, own, dialect, isPost: true };
}

/** Returns the key of the first request for its repetition by the SDK, which counts it; a new key for any other request. */
function chooseKey(unanswered, headers, request) {
  const isRepetition = (headers.get("x-stainless-retry-count") ?? "0") !== "0";
  const at = isRepetition ? unanswered.findIndex((one) => one.request === request) : -1;
  return at < 0 ? randomKey() : unanswered.splice(at, 1)[0].key;
}

/** Returns the response and the number of its gateway. Throws the error of the first gateway. */
async function open(fetch, url, init, bases, triesMax) {
  const triesOfPost = Math.max(1, Math.min(triesMax, FIRST_TRIES_MAX));
  const path = url.href.slice(bases[0].length);
  let first;
  for (let tries = 1; tries <= triesOfPost; tries++) {
    for (const [number, base] of bases.entries()) {
      try {
        const response = await fetch(base + path, init);
        if (!STATUSES_OF_ABSENCE.includes(response.status) || number + 1 === bases.length) return { response, number };
        await response.body?.cancel();
      } catch (error) {
        if (init.signal?.aborted) throw error;
        first ??= error;
      }
    }
    if (tries < triesOfPost) await sleep(backoffMs(tries), init.signal);
  }
  throw first;
}

/** The body of a streamed answer, read over as many connections as it takes. It passes whole events on, up to a cursor. */
class Answer {
  #fetch;
  #init;
  #dialect;
  #turn;
  #bases;
  #triesMax;
  #cursor;
  #reader;
  #leaving = new AbortController();
  #decoder;
  #unread = "";
  #held = "";
  #isBegun;
  #end = null;
  /** The first error since the last event. */
  #cut = null;
  /** The error of a cut that cannot be healed. */
  #lost = null;
  #tries = 0;
  #retryAfterMs = 0;
  #refusing = new Set();

  constructor(fetch, init, dialect, turn, bases, triesMax, after, response) {
    this.#fetch = fetch;
    this.#init = { ...init, signal: AbortSignal.any([this.#leaving.signal, ...(init.signal ? [init.signal] : [])]) };
    this.#dialect = dialect;
    this.#turn = turn;
    this.#bases = bases;
    this.#triesMax = triesMax;
    this.#cursor = after;
    this.#isBegun = after !== null;
    this.#connect(response);
  }

  stream() {
    const encoder = new TextEncoder();
    return new ReadableStream({
      pull: async (controller) => {
        const text = await this.#next();
        if (text === null) controller.close();
        else controller.enqueue(encoder.encode(text));
      },
      cancel: async (reason) => {
        this.#leaving.abort(reason);
        await this.#reader?.cancel(reason).catch(() => {});
      },
    });
  }

  /** Returns the next events, null at the end of the answer. Throws the error of a cut that cannot be healed. */
  async #next() {
    while (this.#lost === null) {
      if (!this.#reader) {
        if (this.#end === "whole") return null;
        const rest = await this.#reconnect();
        if (rest !== null) return rest;
        continue;
      }
      let received;
      try {
        received = await this.#receive();
        if (received.done && this.#end === null) throw new TypeError("the stream ended before the end of the answer");
      } catch (error) {
        this.#disconnect();
        this.#init.signal.throwIfAborted();
        if (this.#end === "failed") throw error;
        this.#cut ??= error;
        continue;
      }
      if (received.done) return null;
      const passed = this.#read(this.#decoder.decode(received.value, { stream: true }));
      if (passed) return passed;
    }
    this.#disconnect();
    throw this.#lost;
  }

  #connect(response) {
    this.#reader = response.body.getReader();
    this.#decoder = new TextDecoder();
    this.#unread = this.#held = "";
  }

  #disconnect() {
    this.#reader?.cancel().catch(() => {});
    this.#reader = undefined;
  }

  async #receive() {
    let timer;
    const silence = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new TypeError(`no byte in ${SILENCE_MS / 1000} s`)), SILENCE_MS);
    });
    try {
      return await Promise.race([this.#reader.read(), silence]);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Returns the events up to the last cursor. A restart of the answer ends it. */
  #read(received) {
    const frames = (this.#unread + received).split("\n\n");
    this.#unread = frames.pop();
    let passed = "";
    for (const frame of frames) {
      const event = `${frame}\n\n`;
      if (HEARTBEAT.test(frame) && !frame.includes("\nid: ")) {
        passed += event;
        continue;
      }
      const { cursor = null, kind = null } = this.#meaning(frame);
      if (kind === "begin") {
        if (this.#isBegun && this.#cut !== null) {
          // The SDK has a part of the old answer.
          this.#lost = this.#cut;
          break;
        }
        this.#isBegun = true;
      } else if (kind) this.#end = kind;
      this.#held += event;
      if (cursor !== null || this.#end !== null) {
        passed += this.#held;
        [this.#held, this.#cut, this.#tries] = ["", null, 0];
        this.#cursor = cursor ?? this.#cursor;
      }
    }
    return passed;
  }

  #meaning(frame) {
    try {
      return this.#dialect.meaning(readFields(frame));
    } catch {
      return {}; // the SDK decides what it does with such an event
    }
  }

  /** Continues after the cursor at the next gateway that has the turn. Returns the rest if nothing follows. */
  async #reconnect() {
    const { signal } = this.#init;
    while (this.#refusing.size < this.#bases.length) {
      const number = this.#tries % this.#bases.length;
      const rounds = Math.floor(this.#tries / this.#bases.length);
      if (rounds >= this.#triesMax) break;
      if (number === 0 && rounds) {
        await sleep(Math.max(backoffMs(rounds), this.#retryAfterMs), signal);
        this.#retryAfterMs = 0;
      }
      this.#tries++;
      // The gateway that was read last comes last.
      const base = this.#bases[(number + 1) % this.#bases.length];
      if (this.#refusing.has(base)) continue;
      let response;
      try {
        response = await this.#fetch(base + this.#dialect.path(this.#turn, this.#cursor), this.#init);
      } catch {
        signal.throwIfAborted();
        continue;
      }
      if (response.status === 200 && isStream(response)) {
        this.#bases = [base, ...this.#bases.filter((one) => one !== base)];
        this.#connect(response);
        return null;
      }
      await response.body?.cancel();
      if (response.status === 204 && this.#dialect.rest) {
        this.#end = "whole";
        return this.#dialect.rest;
      }
      if (STATUSES_TO_RETRY.includes(response.status)) {
        const seconds = Number(response.headers.get("retry-after"));
        if (seconds > 0) this.#retryAfterMs = Math.max(this.#retryAfterMs, Math.min(seconds, RETRY_AFTER_MAX_S) * 1000);
      } else this.#refusing.add(base);
    }
    this.#lost = this.#cut ?? new TypeError("the stream was cut");
    return null;
  }
}

/** Returns the fields of an event, each of which a gateway writes in one line. */
function readFields(frame) {
  const fields = {};
  for (const line of frame.split("\n")) {
    const at = line.indexOf(": ");
    if (at > 0) fields[line.slice(0, at)] = line.slice(at + 2);
  }
  return fields;
}

function isStream(response) {
  return response.body !== null && (response.headers.get("content-type") ?? "").startsWith("text/event-stream");
}

function backoffMs(tries) {
  return Math.min(WAIT_MAX_MS, WAIT_MS * 2 ** Math.min(tries - 1, 10)) * (0.5 + Math.random());
}

/** Waits. Throws the reason of an aborted signal. */
function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const abort = () => (clearTimeout(timer), reject(signal.reason));
    const timer = setTimeout(() => (signal?.removeEventListener("abort", abort), resolve()), ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** `randomUUID` is missing on pages without TLS. */
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
