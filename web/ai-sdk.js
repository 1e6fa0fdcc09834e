/**
 * The transport of Tailrace for `useChat` of AI SDK 5, 6 and 7: an answer is shown once, however often its connection is
 * lost.
 *
 * `resumeStream()` after a cut shows the text twice in AI SDK 5 and 6. This transport never lets a cut reach the chat: it
 * counts the chunks that it has received, and requests the answer from the next one on.
 */
import { DefaultChatTransport } from "ai";

// Tries in a row that bring no chunk: about 35 seconds.
const TRIES_MAX = 10;
const WAIT_MS = 250;
const WAIT_MAX_MS = 5000;
// The gateway sends a comment after 15 seconds of silence. A connection that is silent for longer is lost.
const SILENCE_MS = 40_000;
// The gateway, or a proxy before it, is busy or away.
const STATUSES_TO_RETRY = [429, 502, 503, 504];
const RETRY_AFTER_MAX_S = 30;

/** Where a stream goes on: after so many chunks of a run. `isReplay`: counted as in a stream that a reloaded page reads. */
class Cursor {
  run;
  seen = 0;
  isReplay;
  /** The app's own metadata of its request. */
  metadata;
}

/** The gateway is busy, or your server cannot reach it. */
class Busy extends Error {
  constructor(message, retryAfterS) {
    super(message);
    this.waitMs = 1000 * retryAfterS;
  }
}

/** The user has left the page, which the browser may keep, with its connections. `shown` resolves when it is shown again. */
class Left extends Error {
  shown = new Promise((resolve) => globalThis.addEventListener("pageshow", resolve, { once: true }));
}

/** The model began its answer anew, and this version of AI SDK cannot take text back. `name` is "AnswerRestarted". */
export class AnswerRestarted extends Error {
  name = "AnswerRestarted";

  constructor() {
    super("the answer began anew: remove the last message and call resumeStream()");
  }
}

/**
 * Takes the options of `DefaultChatTransport`.
 *
 * @template {import("ai").UIMessage} MESSAGE
 * @extends {DefaultChatTransport<MESSAGE>}
 */
export class TailraceChatTransport extends DefaultChatTransport {
  /** @param {import("ai").HttpChatTransportInitOptions<MESSAGE>} [options] */
  constructor({ fetch, prepareSendMessagesRequest: prepareSend, prepareReconnectToStreamRequest: prepareResume, ...options } = {}) {
    super({
      ...options,
      async fetch(url, init) {
        const response = await fetchUnlessLeft(fetch ?? globalThis.fetch, url, init);
        if (response.ok) return response;
        const { status } = response;
        const text = await response.text();
        const retryAfterS = Number(response.headers.get("retry-after")) || 0;
        const code = codeOf(text);
        // A server before the gateway cannot reach it: Next.js answers 500 then. Or the gateway is restarted.
        const isAway = (status >= 500 && !code) || (status === 503 && code !== "log_full");
        // Other errors of a question are final: they may be those of an answer that has failed.
        const isTemporary = isAway || (init.method === "GET" && STATUSES_TO_RETRY.includes(status));
        if (isTemporary && retryAfterS <= RETRY_AFTER_MAX_S) throw new Busy(text || `status ${status}`, retryAfterS);
        return new Response(text || null, response);
      },
      prepareSendMessagesRequest:
        prepareSend &&
        (async (request) => {
          const prepared = await prepareSend(request);
          // Without it, a repeated request would be a second question.
          return { ...prepared, body: { idempotency_key: request.body.idempotency_key, ...prepared.body } };
        }),
      async prepareReconnectToStreamRequest(request) {
        const cursor = request.requestMetadata;
        if (!(cursor instanceof Cursor)) return (await prepareResume?.(request)) ?? {};
        const prepared = await prepareResume?.({ ...request, requestMetadata: cursor.metadata });
        return { ...prepared, api: addressAfter(cursor, prepared?.api, request.api) };
      },
    });
  }

  /** @param {ReadableStream<Uint8Array>} stream */
  processResponseStream(stream) {
    return super.processResponseStream(stream.pipeThrough(failWhenSilent()));
  }

  /** The answers to read from their start, by chat: the run, and how often it began anew. AI SDK 5 and 6 read it again then. */
  #restarted = new Map();

  /** @returns {Promise<ReadableStream<import("ai").UIMessageChunk>>} */
  async sendMessages(options) {
    this.#restarted.delete(options.chatId);
    // useChat sends the app's `body` again with the results of tools, which are another request.
    const given = options.messages.at(-1)?.role === "user" && options.body?.idempotency_key;
    const body = { ...options.body, idempotency_key: given || randomName() };
    return this.#wholeStream(options, false, () => super.sendMessages({ ...options, body }));
  }

  /** Reads the answer that runs, or the turn of `resumeStream({ metadata: { turn } })`, also if that has ended. */
  async reconnectToStream(options) {
    const { turn } = options.metadata ?? {};
    if (turn && this.#restarted.get(options.chatId)?.run !== turn) this.#restarted.set(options.chatId, { run: turn });
    return this.#wholeStream(options, true, () => super.reconnectToStream(options));
  }

  /** Returns the chunks of a stream that `open` begins, over as many connections as it takes; null if there is none. */
  async #wholeStream(options, isReplay, open) {
    const { abortSignal, chatId, metadata } = options;
    const { run, times = 0 } = this.#restarted.get(chatId) ?? {};
    const cursor = Object.assign(new Cursor(), { run, isReplay, metadata });
    const resume = () => super.reconnectToStream({ ...options, chatId: cursor.run, metadata: cursor });
    let tries = 0;
    let restarts = 0;
    let isCancelled = false;
    // The chunks of a step that will be taken back.
    let held = [];
    /** Connects, again after each failure that another try may mend. */
    const connect = async (failure) => {
      for (;;) {
        if (failure) await this.#waitAfter(failure, (tries += 1), abortSignal);
        if (isCancelled) return reader;
        try {
          const opened = (await (cursor.run === undefined ? open() : resume()))?.getReader();
          if (isCancelled) await opened?.cancel();
          return opened;
        } catch (error) {
          failure = error;
        }
      }
    };
    let reader = await connect();
    if (reader === undefined) return null;
    let isWhole = false;
    const end = (controller) => {
      for (const chunk of held) controller.enqueue(chunk);
      this.#restarted.delete(chatId);
      controller.close();
    };
    return new ReadableStream({
      pull: async (controller) => {
        while (!isCancelled) {
          try {
            const { done, value } = await reader.read();
            if (isCancelled) return;
            if (done && !isWhole) throw new TypeError("network error: the stream ended before the answer");
            if (done) return end(controller);
            tries = 0;
            cursor.seen += 1;
            cursor.run ??= value.messageMetadata?.turn;
            isWhole ||= value.type === "finish";
            held.push(value);
            if (restarts < times && value.type !== "start-step") continue;
            for (const chunk of held.splice(0)) controller.enqueue(chunk);
            return;
          } catch (error) {
            if (isWhole) return end(controller);
            if (error?.value?.type === "reset-step") {
              restarts += 1;
              if (restarts > times) {
                this.#restarted.set(chatId, { run: cursor.run, times: restarts });
                throw new AnswerRestarted();
              }
              cursor.seen += 1;
              held = [];
              reader = await connect();
            } else {
              reader = await connect(error);
            }
          }
        }
      },
      cancel(reason) {
        // The pending read ends as if the connection were lost.
        isCancelled = true;
        return reader.cancel(reason).catch(() => {});
      },
    });
  }

  /** Waits before another try after `error`. Throws an error that another try does not mend. */
  async #waitAfter(error, tries, abortSignal) {
    // A lost connection is a TypeError (Fetch standard). A chat takes it for one that it can resume, so it gets another.
    if (error instanceof Left) {
      await error.shown;
      return abortSignal?.throwIfAborted();
    }
    const isLost = error instanceof TypeError;
    if (abortSignal?.aborted || !(isLost || error instanceof Busy)) throw error;
    if (tries > TRIES_MAX) throw isLost ? new Error("the connection is lost", { cause: error }) : error;
    const waitMs = Math.min(WAIT_MAX_MS, WAIT_MS * 2 ** (tries - 1)) * (0.5 + Math.random());
    await sleep(Math.max(waitMs, error.waitMs ?? 0), abortSignal);
  }
}

/** Returns the code of a gateway's error; undefined for another server's. */
function codeOf(text) {
  try {
    return JSON.parse(text).error.code;
  } catch {
    return undefined;
  }
}

/** Returns the response; throws Left if the user leaves the page before it has begun. */
async function fetchUnlessLeft(fetch, url, init) {
  const connection = new AbortController();
  let left;
  const leave = () => {
    left = new Left();
    connection.abort();
  };
  globalThis.addEventListener?.("pagehide", leave);
  const abort = () => connection.abort(init.signal.reason);
  if (init.signal?.aborted) abort();
  // It ends the body of the response, too.
  init.signal?.addEventListener("abort", abort);
  try {
    return await fetch(url, { ...init, signal: connection.signal });
  } catch (error) {
    throw left ?? error;
  } finally {
    globalThis.removeEventListener?.("pagehide", leave);
  }
}

/**
 * Returns a transform that fails as a lost connection does: after a phone has changed its network, `fetch` may report none.
 * It fails with Left when the user leaves the page.
 */
function failWhenSilent() {
  let silence;
  let leave;
  const end = () => {
    clearTimeout(silence);
    globalThis.removeEventListener?.("pagehide", leave);
  };
  const fail = (controller, error) => (end(), controller.error(error));
  const listen = (controller) => {
    clearTimeout(silence);
    silence = setTimeout(() => fail(controller, new TypeError("network error: the connection is silent")), SILENCE_MS);
  };
  return new TransformStream({
    start(controller) {
      listen(controller);
      leave = () => fail(controller, new Left());
      globalThis.addEventListener?.("pagehide", leave);
    },
    transform(bytes, controller) {
      listen(controller);
      controller.enqueue(bytes);
    },
    flush: end,
    cancel: end,
  });
}

/** Returns the URL of a run from a chunk on: below `api`, or the app's own. */
function addressAfter(cursor, own, api) {
  const [path, query] = (own ?? api).split("?");
  const place = own ? path : `${path.replace(/\/$/, "")}/${cursor.run}/stream`;
  const parameters = [query, `startIndex=${cursor.seen}`, cursor.isReplay && "replay=true"].filter(Boolean);
  return `${place}?${parameters.join("&")}`;
}

/** Returns a random name. Pages without TLS have no `crypto.randomUUID`. */
function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Waits, or throws as soon as `signal` is aborted. */
function sleep(ms, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", leave);
      resolve();
    }, ms);
    signal?.addEventListener("abort", leave, { once: true });
  });
}
