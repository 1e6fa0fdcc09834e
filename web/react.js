/**
 * React hooks for Tailrace: one turn, one session, and the last event of a stream. They read each answer once, over as many
 * connections as it takes. The types are in react.d.ts.
 *
 *     const { ask, text, state, error } = useTurn();
 */
import { useEffect, useRef, useState } from "react";
import { addText, ask, follow, randomName, request, resume } from "./tailrace.js";

const NO_TURN = { turn: null, session: null, text: "", state: "idle", end: null, error: null };
const NO_SESSION = { turns: [], hasEarlier: false, state: "idle", error: null };
const TURNS_AT_ONCE = 100;
// The idle stream of a hidden page is closed: without HTTP/2, a browser opens only six connections to a server for all tabs.
const REST_MS = 5000;
const NO_EVENT = { data: null, error: null, status: "idle" };
// A page stays open for days. An EventSource does not give up either.
const PATIENT = { triesMax: Infinity };

const isLeft = (error) => error.name === "AbortError";

/** Asks a turn, or reads `turn`, which a reloaded page has stored. To unmount stops reading; the turn goes on. */
export function useTurn({ turn = null, ...options } = {}) {
  const [shown, show] = useState(NO_TURN);
  const [reader] = useState(() => new TurnReader(show));
  useEffect(() => {
    reader.options = options;
  });
  useEffect(() => reader.mount(turn), [reader, turn]);
  return { ...shown, ask: reader.ask, resume: reader.resume, steer: reader.steer, stop: reader.stop, cancel: reader.cancel };
}

/** The answer that a component reads. */
class TurnReader {
  options = {};
  #show;
  #answer = null;
  /** The turns that steered the answer, and are read with it. */
  #steered = new Set();
  #question = null;
  #fail;
  #given = null;
  #leaving;
  #isAway = false;

  constructor(show) {
    this.#show = show;
  }

  /** Reads `turn` unless it is read already. Returns the function that stops reading. */
  mount(turn) {
    clearTimeout(this.#leaving);
    const isNew = turn !== this.#given && turn !== this.#answer?.turn;
    if (isNew && !turn) this.#clear();
    else if (isNew) this.resume(turn);
    else if (this.#isAway && this.#answer?.turn) this.resume(this.#answer.turn);
    this.#given = turn;
    this.#isAway = false;
    // StrictMode mounts twice: the second time comes before the timer.
    return () => {
      this.#leaving = setTimeout(() => {
        this.#isAway = this.#answer !== null && this.#answer.state !== "ended";
        this.#answer?.close();
      });
    };
  }

  ask = (question, options) => {
    const asked = JSON.stringify(question);
    // A double click, or an effect that StrictMode runs twice.
    if (this.#answer?.state === "connecting" && !this.#answer.turn && asked === this.#question) return;
    this.#read((given) => ask(question, { ...given, ...options }));
    this.#question = asked;
  };

  resume = (turn, options) => this.#read((given) => resume(turn, { ...given, ...options }));

  steer = async (message, options) => {
    const [answer, steered] = [this.#answer, this.#steered];
    const made = (await answer?.steer(message, options).catch(this.#fail)) ?? null;
    const readNext = () => answer === this.#answer && !steered.has(made.turn) && this.resume(made.turn);
    // If the answer had ended, or ended by itself, no reader goes on into the turn of the message.
    if (made) answer.done.then(readNext, () => {});
    return made;
  };

  stop = () => this.#answer?.close();

  cancel = () => this.#answer?.cancel().catch(this.#fail);

  #clear() {
    this.#answer?.close();
    this.#answer = null;
    this.#show(NO_TURN);
  }

  #read(begin) {
    this.#answer?.close();
    const { onEvent, onState, ...options } = this.options;
    let [end, error] = [null, null];
    const steered = (this.#steered = new Set());
    const show = () => {
      const { turn, session, text, state } = answer;
      if (answer === this.#answer) this.#show({ turn, session, text, state, end, error });
    };
    const answer = begin({
      ...options,
      onEvent: (event) => (event.type === "steered" && steered.add(event.turn), show(), onEvent?.(event, answer)),
      onState: (state) => (show(), onState?.(state, answer)),
    });
    this.#answer = answer;
    this.#question = null;
    show();
    const settle = (found, failure) => {
      [end, error] = [found, failure];
      show();
    };
    this.#fail = (failure) => (settle(end, isLeft(failure) ? null : failure), null);
    answer.done.then(
      (found) => settle(found, null),
      this.#fail,
    );
  }
}

/** The newest turns of a session and all new ones, over one connection; `readEarlier` adds those before. A session that does not exist begins with the first question. */
export function useSession(session, options = {}) {
  const [shown, show] = useState(NO_SESSION);
  const [asker] = useState(() => new SessionAsker(show));
  useEffect(() => {
    asker.options = options;
  });
  useEffect(() => asker.mount(session), [asker, session]);
  return { ...shown, ask: asker.ask, steer: asker.steer, cancel: asker.cancel, readEarlier: asker.readEarlier };
}

/** The session that a component shows. */
class SessionAsker {
  options = {};
  #show;
  #session = null;
  #reader = null;
  #asking = {};

  constructor(show) {
    this.#show = show;
  }

  /** Reads the session. Returns the function that stops reading. */
  mount(session) {
    this.#session = session;
    this.#show(NO_SESSION);
    this.#reader = session ? new SessionReader(session, this.options, this.#show) : null;
    return () => this.#reader?.close();
  }

  /** Returns the turn's id, or null if the question was refused: see `error`. */
  ask = (question) => {
    const session = this.#session;
    const given = typeof question === "string" ? { message: question } : question;
    const body = JSON.stringify({ session, create_session: true, ...given });
    // A double click, or an effect that StrictMode runs twice.
    if (this.#asking.body === body) return this.#asking.turn;
    const turn = this.#post("/v1/turns", body).then((made) => {
      // Another question may have been asked since.
      if (this.#asking.turn === turn) this.#asking = {};
      if (made && session === this.#session) this.#reader?.expect();
      return made?.turn ?? null;
    });
    this.#asking = { body, turn };
    return turn;
  };

  /** Adds the turns before those in `turns`. */
  readEarlier = () => this.#reader?.readEarlier();

  /** Puts a message into the answer that runs, or asks. Returns the turn's id, or null if the message was refused. */
  steer = async (message, { at = "now" } = {}) => {
    const running = this.#reader?.newestRunning;
    if (!running) return this.ask({ messages: [{ role: "user", content: message }] });
    const made = await this.#post(`/v1/turns/${running}/steer`, JSON.stringify({ message, at }));
    return made?.turn ?? null;
  };

  /** Ends the running turns. */
  cancel = () => this.#post(`${pathOf(this.#session)}/cancel`);

  async #post(path, body) {
    const session = this.#session;
    const headers = { "content-type": "application/json", "idempotency-key": randomName() };
    this.#show((before) => ({ ...before, error: null }));
    try {
      return await request(path, this.options, { method: "POST", headers, body });
    } catch (error) {
      if (session === this.#session) this.#show((before) => ({ ...before, error }));
      return null;
    }
  }
}

const pathOf = (session) => `/v1/sessions/${encodeURIComponent(session)}`;

/** The turns of a session as records of `GET /v1/sessions/{session}/turns`; those that run grow with each event. */
class SessionReader {
  #path;
  #options;
  #show;
  #leaving = new AbortController();
  #turns = new Map();
  /** The texts of the content blocks of running turns. */
  #texts = new Map();
  #isRead = false;
  /** The cursor of the turns before those that were read. */
  #next = null;
  #stream = null;
  #isEnded = false;
  #isResting = false;
  #resting;

  constructor(session, options, show) {
    this.#path = pathOf(session);
    this.#options = { ...PATIENT, ...options, signal: this.#leaving.signal };
    this.#show = (fields) => this.#leaving.signal.aborted || show((before) => ({ ...before, ...fields }));
    globalThis.document?.addEventListener("visibilitychange", this.#restOrWake, { signal: this.#leaving.signal });
    this.#follow();
    this.#restOrWake();
  }

  /** A question was accepted, whose answer the stream brings. */
  expect() {
    if (this.#isEnded || this.#isResting) this.#follow();
  }

  /** The id of the newest turn that runs; undefined if none does. */
  get newestRunning() {
    return [...this.#turns.values()].findLast((turn) => turn.outcome === "running")?.turn;
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
    this.#isEnded = this.#isResting = false;
    this.#show({ state: "connecting" });
    const onEvent = (event) => (this.#take(event), this.#restOrWake());
    const onState = (state) => this.#isResting || this.#show({ state });
    const after = this.#stream?.cursor;
    const stream = follow(`${this.#path}/events?wait=true`, { ...this.#options, after, onEvent, onState });
    this.#stream = stream;
    stream.done.catch((error) => {
      if (stream !== this.#stream) return;
      this.#fail(error);
      this.#isEnded = true;
    });
  }

  close() {
    this.#leaving.abort();
  }

  #take(event) {
    const { turn, type } = event;
    if (type === "session") {
      // The stream has all turns from now on: those before it are in the list, which a new session lacks.
      if (!event.exists) this.#show({ state: "idle" });
      else if (!this.#isRead) this.#readTurns().catch((error) => this.#fail(error));
      this.#isRead = true;
    } else if (type === "start" && !this.#turns.has(turn)) {
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

  async readEarlier() {
    const next = this.#next;
    this.#next = null;
    if (!next) return;
    try {
      const [records, known] = [await this.#page(next), this.#turns];
      this.#turns = new Map(records.map((record) => [record.turn, record]));
      for (const one of known.values()) this.#set(one);
      this.#showTurns();
    } catch (error) {
      this.#next = next;
      // Turns that streamed in the meantime were shown without it.
      this.#showTurns();
      this.#fail(error);
    }
  }

  /** Returns a page of records, oldest first. */
  async #page(after) {
    const page = await request(`${this.#path}/turns?order=desc&limit=${TURNS_AT_ONCE}${after && `&after=${encodeURIComponent(after)}`}`, this.#options);
    this.#next = page.next;
    return (page.data ?? page.turns).reverse();
  }

  async #readTurn(turn) {
    const record = await request(`/v1/turns/${turn}`, this.#options);
    this.#set(merge(record, this.#turns.get(turn)));
    this.#showTurns();
  }

  #set(turn) {
    this.#turns.set(turn.turn, turn);
  }

  #showTurns() {
    this.#show({ turns: [...this.#turns.values()], hasEarlier: this.#next !== null });
  }

  #fail(error) {
    if (!isLeft(error)) this.#show({ error });
  }
}

/** Returns a record with the text that the stream has brought so far, unless the record is complete. */
function merge(record, streamed) {
  if (record.outcome !== "running") return record;
  return { ...record, text: "", ...streamed, input: record.input };
}

/** Keeps the last event of a stream of JSON, such as `/v1/turns/{turn}/events?dialect=state` and `/api/stream/{job}`. */
export function useSSE(url, options = {}) {
  const [shown, show] = useState(NO_EVENT);
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
  });
  useEffect(() => {
    if (!url) return show(NO_EVENT);
    let isClosed = false;
    const update = (fields) => !isClosed && show((before) => ({ ...before, ...fields }));
    show({ ...NO_EVENT, status: "connecting" });
    const stream = follow(url, {
      ...PATIENT,
      ...latest.current,
      onEvent: ({ cursor, ...data }) => update({ data }),
      onState: (status) => update({ status }),
    });
    stream.done.catch((error) => isLeft(error) || update({ error }));
    return () => {
      isClosed = true;
      stream.close();
    };
  }, [url]);
  return { ...shown, isConnected: shown.status === "live" };
}
