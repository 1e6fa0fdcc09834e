/**
 * A session for a chat: its turns and branches, the questions that the server does not have yet, and the tool calls that wait.
 * For browsers and Node 20 and later, with any framework. The types are in session.d.ts.
 *
 *     const session = openSession("ann:chat-1", { offline: "ann", onChange: ({ branch, pending }) => draw(branch, pending) });
 *     session.ask("Why is the sky blue?");
 */
import { outboxOf } from "./outbox.js";
export { forget } from "./outbox.js";
import { addText, decide, follow, randomName, request, send, TailraceError } from "./tailrace.js";

const TURNS_AT_ONCE = 100;
// The idle stream of a hidden page is closed: without HTTP/2, a browser opens only six connections to a server for all tabs.
const REST_MS = 5000;
// A page stays open for days. An EventSource does not give up either.
const PATIENT = { triesMax: Infinity };
const UPLOAD_TRIES_MAX = 4;
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];

/** What a session shows before anything is read. */
export const NO_SESSION = { turns: [], branch: [], branches: [], calls: [], pending: [], hasEarlier: false, state: "idle", error: null };

/** Opens a session, which may not exist yet. `options.onChange(shown)` is called at each change. */
export const openSession = (session, options = {}) => new Session(session, options);

/** Returns the messages of a question: a text, content blocks, or the body of `POST /v1/turns`. */
const messagesOf = (question) => {
  const { message, messages } = typeof question === "string" || Array.isArray(question) ? { message: question } : question;
  return messages ?? [{ role: "user", content: message ?? "" }];
};

const blocksOf = ({ content }) => (typeof content === "string" ? [{ type: "text", text: content }] : content);

/** Returns the text of the last message of a turn's `input`; "" for a message without text, such as the result of a tool. */
export function textOf(input) {
  const texts = blocksOf(input.at(-1) ?? { content: "" }).filter(({ type }) => type === "text");
  // A long text is stored beside the log, and the block refers to it.
  return texts.map(({ text }) => (typeof text === "string" ? text : "A long text")).join("\n\n");
}

/** Returns the ids of the turns that continue `parent`, oldest first. `turns`: a Map by id, oldest first. */
export const childrenOf = (turns, parent) => [...turns.values()].filter((turn) => turn.parent === parent).map(({ turn }) => turn);

/** Returns the newest turn that continues `turn`, also over several turns: the end of its branch. */
export function lastOf(turns, turn) {
  for (let next = [turn]; next.length; next = childrenOf(turns, turn)) turn = next.at(-1);
  return turn;
}

/** Returns the turns of the branch that ends with the turn `leaf`, oldest first. */
export function branchTo(turns, leaf) {
  const path = [];
  for (let turn = turns.get(leaf); turn; turn = turns.get(turn.parent)) path.unshift(turn);
  return path;
}

/** Returns `value` with the strings that are stored beside the log (`GET /v1/blobs/{sha256}`). */
export async function whole(value, readBlob) {
  if (value === null || typeof value !== "object") return value;
  if (Array.isArray(value)) return Promise.all(value.map((one) => whole(one, readBlob)));
  const sha256 = value["tailrace:blob"];
  if (sha256) return readBlob(sha256);
  return Object.fromEntries(await Promise.all(Object.entries(value).map(async ([name, one]) => [name, await whole(one, readBlob)])));
}

const pathOf = (session) => `/v1/sessions/${encodeURIComponent(session)}`;
const isLeft = (error) => error.name === "AbortError";

/** The turns are records of `GET /v1/sessions/{session}/turns`; those that run grow with each event. */
class Session {
  shown = NO_SESSION;
  options;
  #session;
  #path;
  #outbox;
  #leaving = new AbortController();
  #turns = new Map();
  /** The texts of the content blocks of running turns. */
  #texts = new Map();
  /** The records that are being read. */
  #reading = new Map();
  #isRead = false;
  /** Whether the server has the session: a question creates no session that was deleted. */
  #exists = false;
  /** The cursor of the turns before those that were read. */
  #next = null;
  /** A turn of the branch that the user has chosen; null: the newest branch. */
  #chosen = null;
  #branches = [];
  /** The turn whose calls were read. */
  #called = null;
  #stream = null;
  #isEnded = false;
  #isResting = false;
  #resting;

  constructor(session, options) {
    this.#session = session;
    this.#path = pathOf(session);
    this.options = options;
    const signal = this.#leaving.signal;
    this.#outbox = options.outbox ?? outboxOf(options);
    this.#outbox.listen(this.#takeSent, signal);
    globalThis.document?.addEventListener("visibilitychange", this.#restOrWake, { signal });
    this.#follow();
    this.#restOrWake();
  }

  /** Stops reading. Turns go on, and questions are still sent. */
  close() {
    this.#leaving.abort();
  }

  /** Asks in the branch that is shown. Returns the turn's id, or null if the question was refused. */
  ask = (question) => this.#send(question, this.#parent());

  /** Asks the question of a turn again. `fields`: fields of the new turn, for example `{ model }`. */
  regenerate = (turn, fields = {}) => this.#again(turn, (messages) => ({ messages, ...fields }));

  /** Asks another question in the place of that of a turn. A text keeps the files of the old question. */
  edit = (turn, question) => {
    if (typeof question !== "string") return this.#branch(turn, question);
    return this.#again(turn, (messages) => {
      const files = blocksOf(messages.at(-1)).filter(({ type }) => type !== "text");
      const content = files.length ? [...files, { type: "text", text: question }] : question;
      return { messages: [...messages.slice(0, -1), { role: "user", content }] };
    });
  };

  /** Puts a message into the answer that runs, or asks. Returns the turn's id, or null if the message was refused. */
  steer = async (message, { at = "now" } = {}) => {
    const running = [...this.#turns.values()].findLast((turn) => turn.outcome === "running")?.turn;
    if (!running) return this.ask({ messages: [{ role: "user", content: message }] });
    return (await this.#post(`/v1/turns/${running}/steer`, { message, at }))?.turn ?? null;
  };

  /** Ends the running turns. */
  cancel = () => this.#post(`${this.#path}/cancel`);

  /** Decides about a call of `calls`. Returns the response, or null if the decision was refused. */
  decide = (call, decision) =>
    this.#try(async () => {
      const found = await decide(this.#session, call, decision, this.options).finally(() => (this.#called = null));
      this.#expect();
      this.#show({ calls: this.shown.calls.filter((one) => found.undecided_calls.includes(one.call)) });
      return found;
    });

  /** Stores a file. Returns a content block for a question, or null if the file was refused. */
  upload = (file) =>
    this.#try(async () => {
      const body = new FormData();
      body.append("purpose", "user_data");
      body.append("file", file);
      // The form waits, and nothing keeps the file.
      const { id } = await request("/v1/files", { triesMax: UPLOAD_TRIES_MAX, ...this.options }, { method: "POST", body });
      const block = { source: { type: "file", file_id: id } };
      return PICTURES.includes(file.type) ? { type: "image", ...block } : { type: "document", ...block, title: file.name };
    });

  /** Shows the newest branch through a turn; without one, the newest branch of the session. */
  showBranch = (turn = null) => {
    this.#chosen = turn;
    this.#showTurns();
  };

  /** Sends the questions of `pending` that were refused again; only the one with a key, if it is given. */
  retry = (key) => this.#outbox.retry((one) => one.session === this.#session && (!key || one.key === key));

  /** Deletes a question of `pending`. A question that is on its way may still be answered. */
  discard = (key) => this.#outbox.discard(key);

  /** Adds the turns before those in `turns`. */
  readEarlier = async () => {
    const next = this.#next;
    this.#next = null;
    if (!next) return;
    try {
      const [records, known] = [await this.#page(next), this.#turns];
      this.#turns = new Map(records.map((record) => [record.turn, record]));
      for (const one of known.values()) this.#set(one);
    } catch (error) {
      this.#next = next;
      this.#fail(error);
    }
    // Turns that streamed in the meantime were shown without it.
    this.#showTurns();
  };

  /** The turn that a question continues, unless it is the newest one: the server knows that better. */
  #parent() {
    const leaf = this.shown.branch.at(-1)?.turn;
    const isNewest = !this.#chosen || leaf === this.shown.branches[0]?.turn;
    return isNewest || this.#pending().length ? {} : { parent: leaf };
  }

  async #again(turn, build) {
    const readBlob = async (sha256) => (await send(this.options, `/v1/blobs/${sha256}`, {})).text();
    const messages = await this.#try(() => whole(this.#known(turn).input, readBlob));
    return messages && this.#branch(turn, build(messages));
  }

  async #branch(turn, question) {
    const known = await this.#try(() => this.#known(turn));
    return known && this.#send(question, { parent: known.parent ?? null });
  }

  #known(turn) {
    if (this.#turns.has(turn)) return this.#turns.get(turn);
    throw new TailraceError("this chat has no such question: choose another one", { code: "turn_not_found" });
  }

  #send(question, place) {
    const isBody = typeof question === "object" && !Array.isArray(question);
    const given = isBody ? question : typeof question === "string" ? { message: question } : { messages: messagesOf(question) };
    // A question while an answer runs waits for its end. A whole conversation has its own place.
    const queued = given.full_history ? {} : { on_busy: "queue", ...place };
    const made = { session: this.#session, create_session: !this.#exists, ...queued, ...this.options.defaults, ...given };
    this.#show({ error: null });
    return this.#outbox.add(this.#session, JSON.stringify(made), this.options);
  }

  /** Takes a change of the outbox: with `turn`, the server has accepted the question `sent`; with `error`, it has not. */
  #takeSent = async (sent) => {
    if (sent?.session === this.#session && sent.error) {
      if (sent.error.code === "session_not_found") this.#forget();
      this.#fail(sent.error);
    }
    if (sent?.session === this.#session && sent.turn) {
      this.#expect();
      this.#chosen = null;
      // Until then the question stays in `pending`, so that it is never missing.
      if (!this.#turns.get(sent.turn)?.input.length) await this.#readTurn(sent.turn).catch((error) => this.#fail(error));
    }
    this.#show({ pending: this.#pending() });
  };

  /** The session was deleted: another question begins it again. */
  #forget() {
    this.#exists = false;
    this.#turns.clear();
    this.#showTurns();
  }

  #pending() {
    const isSent = (one) => one.turn && this.#turns.get(one.turn)?.parent !== undefined;
    return this.#outbox.of(this.#session).filter((one) => !isSent(one)).map(({ key, body, at, error, isStored }) => {
      return { key, input: messagesOf(JSON.parse(body)), asked_at: new Date(at).toISOString(), error: error ?? null, isStored };
    });
  }

  #post(path, body) {
    const headers = { "content-type": "application/json", "idempotency-key": randomName() };
    return this.#try(() => request(path, this.options, { method: "POST", headers, ...(body && { body: JSON.stringify(body) }) }));
  }

  /** Returns what `work` returns, or null after an error, which is shown. */
  async #try(work) {
    this.#show({ error: null });
    try {
      return await work();
    } catch (error) {
      this.#fail(error);
      return null;
    }
  }

  /** A question was accepted, whose answer the stream brings. */
  #expect() {
    this.#exists = true;
    if (this.#isEnded || this.#isResting) this.#follow();
  }

  /** Closes the stream of a hidden page when nothing happens, and continues it when the page is shown. */
  #restOrWake = () => {
    clearTimeout(this.#resting);
    if (!globalThis.document?.hidden) return this.#isResting && this.#follow();
    this.#resting = setTimeout(() => {
      if ([...this.#turns.values()].some((turn) => turn.outcome === "running")) return;
      this.#isResting = true;
      this.#stream.close();
    }, REST_MS);
  };

  #follow() {
    if (this.#leaving.signal.aborted) return;
    this.#isEnded = this.#isResting = false;
    this.#show({ state: "connecting" });
    const onEvent = (event) => (this.#take(event), this.#restOrWake());
    const onState = (state) => this.#isResting || this.#show({ state });
    const after = this.#stream?.cursor;
    const options = { ...PATIENT, ...this.options, signal: this.#leaving.signal };
    const stream = follow(`${this.#path}/events?wait=true`, { ...options, after, onEvent, onState });
    this.#stream = stream;
    stream.done.catch((error) => {
      if (stream !== this.#stream) return;
      this.#fail(error);
      this.#isEnded = true;
    });
  }

  #take(event) {
    const { turn, type } = event;
    if (type === "session") {
      this.#exists = event.exists;
      // The stream has all turns from now on: those before it are in the list, which a new session lacks.
      if (!event.exists && this.#isRead) this.#forget();
      if (!event.exists) this.#show({ state: "idle" });
      else if (!this.#isRead) this.#readTurns().catch((error) => this.#fail(error));
      this.#isRead = true;
    } else if (type === "start" && !this.#turns.has(turn)) {
      this.#exists = true;
      this.#show({ state: "live" });
      this.#set({ turn, session: event.session, model: event.model, input: [], text: "", outcome: "running", error: null });
      this.#readTurn(turn).catch((error) => this.#fail(error));
    } else {
      const known = this.#turns.get(turn) ?? { turn, input: [], text: "", outcome: "running", error: null };
      // A record that is complete has the text of all events.
      if (known.outcome !== "running") return;
      const { cursor, type: _, code, message, ...end } = event;
      if (type === "delta") this.#set({ ...known, text: addText(this.#textsOf(turn), event, known.text) });
      if (type === "reset") this.#set({ ...known, text: "" });
      if (type === "done") this.#set({ ...known, ...end });
      if (type === "error") this.#set({ ...known, ...end, outcome: "failed", error: { code, message } });
      if (["reset", "done", "error"].includes(type)) this.#texts.delete(turn);
    }
    this.#showTurns();
  }

  #textsOf(turn) {
    if (!this.#texts.has(turn)) this.#texts.set(turn, []);
    return this.#texts.get(turn);
  }

  async #readTurns() {
    const records = await this.#page("");
    const streamed = this.#turns;
    this.#turns = new Map();
    for (const record of records) this.#set(merge(record, streamed.get(record.turn)));
    for (const [turn, known] of streamed) if (!this.#turns.has(turn)) this.#set(known);
    this.#showTurns();
  }

  /** Returns a page of records, oldest first. */
  async #page(after) {
    const path = `${this.#path}/turns?order=desc&limit=${TURNS_AT_ONCE}${after && `&after=${encodeURIComponent(after)}`}`;
    const page = await request(path, { ...PATIENT, ...this.options, signal: this.#leaving.signal });
    this.#next = page.next;
    return (page.data ?? page.turns).reverse();
  }

  /** Reads a record once, although the stream and the response to the question name the turn. */
  #readTurn(turn) {
    const read = async () => {
      const record = await request(`/v1/turns/${turn}`, { ...PATIENT, ...this.options, signal: this.#leaving.signal });
      this.#set(merge(record, this.#turns.get(turn)));
      this.#showTurns();
    };
    if (!this.#reading.has(turn)) this.#reading.set(turn, read().finally(() => this.#reading.delete(turn)));
    return this.#reading.get(turn);
  }

  #set(turn) {
    this.#turns.set(turn.turn, turn);
  }

  #showTurns() {
    // The place of a turn is known when its record is read.
    const placed = new Map([...this.#turns].filter(([, turn]) => turn.parent !== undefined));
    const leaf = lastOf(placed, placed.has(this.#chosen) ? this.#chosen : [...placed.keys()].at(-1));
    const branch = branchTo(placed, leaf).map((turn) => ({ ...turn, siblings: childrenOf(placed, turn.parent) }));
    this.#showCalls(branch.at(-1));
    this.#show({ turns: [...this.#turns.values()], branch, branches: branchesOf(placed), hasEarlier: this.#next !== null, pending: this.#pending() });
  }

  /** Reads the calls for which the last turn that is shown waits. */
  async #showCalls(last) {
    const turn = last?.outcome === "completed" && last.stop_reason === "tool_use" ? last.turn : null;
    if (turn === this.#called) return;
    this.#called = turn;
    this.#show({ calls: [] });
    if (!turn) return;
    try {
      const found = await request(`${this.#path}/calls`, { ...this.options, signal: this.#leaving.signal });
      if (turn === this.#called && found.turn === turn) this.#show({ calls: found.calls.filter(({ decision }) => !decision) });
    } catch (error) {
      this.#fail(error);
    }
  }

  #show(fields) {
    if (this.#leaving.signal.aborted) return;
    this.shown = { ...this.shown, ...fields };
    this.options.onChange?.(this.shown);
  }

  #fail(error) {
    if (!isLeft(error)) this.#show({ error });
  }
}

/** Returns the branches, newest first, as `GET /v1/sessions/{session}/branches` has them. */
function branchesOf(turns) {
  const continued = new Set([...turns.values()].map(({ parent }) => parent));
  const leaves = [...turns.values()].filter(({ turn }) => !continued.has(turn)).reverse();
  return leaves.map(({ turn, outcome, asked_at }) => {
    const path = branchTo(turns, turn).map((one) => one.turn);
    return { turn, outcome, asked_at, length: path.length, turns: path };
  });
}

/** Returns a record with the text that the stream has brought so far, unless the record is complete. */
function merge(record, streamed) {
  if (record.outcome !== "running") return record;
  return { ...record, text: "", ...streamed, input: record.input, parent: record.parent };
}
