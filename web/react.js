/**
 * React hooks for Tailrace: one turn, one session, and the last event of a stream. They read each answer once, over as many
 * connections as it takes. The types are in react.d.ts.
 *
 *     const { ask, text, state, error } = useTurn();
 */
import { useEffect, useRef, useState } from "react";
import { outboxOf } from "./outbox.js";
import { NO_SESSION, openSession } from "./session.js";
import { ask, follow, resume } from "./tailrace.js";

const NO_TURN = { turn: null, session: null, text: "", state: "idle", end: null, error: null };
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

/** The newest turns of a session and all new ones, over one connection: see session.js. A session that does not exist begins with the first question. */
export function useSession(session, options = {}) {
  const [shown, show] = useState(NO_SESSION);
  const [reader] = useState(() => new SessionHolder(show));
  useEffect(() => reader.update(options));
  useEffect(() => reader.mount(session), [reader, session, options.offline]);
  return { ...shown, ...reader.acts };
}

const ACTS = ["ask", "steer", "cancel", "regenerate", "edit", "decide", "upload", "showBranch", "readEarlier", "retry", "discard"];

/** The session that a component shows. */
class SessionHolder {
  /** The functions of the hook, which stay the same when another session is shown. */
  acts = Object.fromEntries(ACTS.map((name) => [name, async (...given) => (await this.#opened?.[name](...given)) ?? null]));
  #show;
  #options = {};
  #opened = null;
  /** The questions of a component without `offline`: those of an effect that StrictMode runs twice are one. */
  #outbox = outboxOf({});

  constructor(show) {
    this.#show = show;
  }

  update(options) {
    this.#options = { ...options, onChange: this.#show, ...(!options.offline && { outbox: this.#outbox }) };
    if (this.#opened) this.#opened.options = this.#options;
  }

  /** Reads the session. Returns the function that stops reading. */
  mount(session) {
    this.#show(NO_SESSION);
    this.#opened = session ? openSession(session, this.#options) : null;
    return () => this.#opened?.close();
  }
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
