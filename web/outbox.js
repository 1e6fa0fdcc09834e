/**
 * Questions that the server does not have yet. With `options.offline`, a name such as that of the user, the browser keeps them in
 * IndexedDB over a reload, and each page with the same name sends them. Without it, or without IndexedDB, they are in memory.
 */
import { randomName, request, TailraceError } from "./tailrace.js";

const MESSAGES_MAX = 100;
const BYTES_MAX = 32_000_000;
const WAIT_S_MIN = 5;
const WAIT_S_MAX = 300;
const STORE = "messages";

const outboxes = new Map();

/** Returns the outbox of a name at a gateway, which all sessions of a page share; a new one without a name. */
export function outboxOf(options) {
  const { offline, url = "" } = options;
  if (!offline) return new Outbox(null, options);
  const name = `${new URL(url || "/", globalThis.location?.href).href.replace(/\/$/, "")} ${offline}`;
  if (!outboxes.has(name)) outboxes.set(name, new Outbox(name, options));
  const outbox = outboxes.get(name);
  outbox.options = options;
  return outbox;
}

/** Deletes the questions that are kept for `options.offline`, for example when the user logs out. */
export const forget = (options) => outboxOf(options).forget();

class Outbox {
  options;
  #name;
  #items = [];
  #listeners = new Set();
  #lines = new Map();
  #database;
  #tabs = null;

  constructor(name, options) {
    this.#name = name;
    this.options = options;
    this.#database = name ? openDatabase() : Promise.resolve(null);
    if (name) this.#begin();
  }

  /** Calls `listener` at each change, with the question that was accepted or refused, until `signal` is aborted. */
  listen(listener, signal) {
    this.#listeners.add(listener);
    signal.addEventListener("abort", () => this.#listeners.delete(listener));
    queueMicrotask(() => listener());
  }

  /** Returns the questions of a session, oldest first. */
  of(session) {
    return this.#items.filter((one) => one.session === session);
  }

  /** Sends a question. Returns a promise of the turn's id; of null if the question was refused, or cannot be sent now. */
  add(session, body, options = this.options, key = randomName()) {
    const last = this.of(session).at(-1);
    // A double click, or an effect that StrictMode runs twice.
    if (last?.body === body && last.settle) return last.promise;
    // The questions before it are tried again, too.
    for (const one of this.of(session)) one.isHeld = false;
    const at = Math.max(Date.now(), (this.#items.at(-1)?.at ?? 0) + 1);
    const item = { key, name: this.#name, session, body, at, isStored: false, options };
    item.promise = new Promise((resolve) => (item.settle = resolve));
    for (const old of this.#items.filter(({ isRefused }) => isRefused)) if (!this.#fits(body)) this.discard(old.key);
    if (!this.#fits(body)) {
      const message = `${this.#items.length} questions wait already: the next one has no room. Wait for the network, or discard one.`;
      this.#tell({ session, error: new TailraceError(message, { code: "outbox_full" }) });
      return Promise.resolve(null);
    }
    this.#items.push(item);
    this.#tell();
    // A question that is sent at once is stored, too: the page may be closed before the response.
    this.#put(item).then(() => this.#send(session));
    return item.promise;
  }

  /** Stores a question that the page sends itself, until `discard`: if the page is closed before, another one sends it. */
  keep(session, body, key) {
    if (this.#fits(body)) return this.#put({ key, name: this.#name, session, body, at: Date.now() });
  }

  #fits(body) {
    return this.#items.length < MESSAGES_MAX && this.#items.reduce((sum, one) => sum + one.body.length, body.length) <= BYTES_MAX;
  }

  /** Sends questions again that were refused, or that wait. */
  retry = (isMeant = () => true) => {
    for (const item of this.#items.filter(isMeant)) {
      if (item.isRefused) this.#put(Object.assign(item, { isRefused: false, error: null }));
      item.isHeld = false;
      this.#send(item.session);
    }
    this.#tell();
  };

  /** Deletes a question. */
  async discard(key) {
    this.#remove(key);
    this.#tell();
    await this.#write((store) => store.delete(key));
    // A read that began before the deletion has brought it back.
    this.#remove(key);
    this.#tell();
    this.#tabs?.postMessage({ key });
  }

  /** Deletes all questions. */
  async forget() {
    await Promise.all(this.#items.map(({ key }) => this.discard(key)));
  }

  async #begin() {
    try {
      this.#tabs = new BroadcastChannel("tailrace-outbox");
      // Node would not end.
      this.#tabs.unref?.();
      this.#tabs.onmessage = async ({ data: { key, turn } }) => {
        const item = this.#items.find((one) => one.key === key);
        if (item && turn) this.#accept(item, turn);
        else if (item) this.#remove(key);
        await this.#read();
      };
    } catch {
      // Firefox permits none where it blocks the storage.
    }
    globalThis.addEventListener?.("online", () => this.retry(({ isRefused }) => !isRefused));
    await this.#read();
    this.retry(({ isRefused }) => !isRefused);
  }

  /** Reads what the tabs of this browser have stored. */
  async #read() {
    const stored = await this.#write((store) => store.index("name").getAll(this.#name), "readonly");
    if (!stored) return;
    const known = new Map(this.#items.map((one) => [one.key, one]));
    // One that this tab waits for may be sent twice, with the same key.
    const own = this.#items.filter(({ isStored, settle, turn }) => !isStored || settle || turn);
    const found = stored.sort((a, b) => a.at - b.at).map((one) => Object.assign(known.get(one.key) ?? { options: null }, one, { isStored: true }));
    this.#items = [...found, ...own.filter((one) => !found.includes(one))];
    this.#tell();
  }

  /** Sends the questions of a session in their order, from one tab at a time. */
  #send(session) {
    if (this.#lines.has(session) || !this.#next(session)) return;
    const work = async () => {
      // Another tab may have sent some.
      await this.#read();
      for (let item; (item = this.#next(session)); ) await this.#post(item);
    };
    const locks = this.#name && globalThis.navigator?.locks;
    const line = (locks ? locks.request(`tailrace ${this.#name} ${session}`, work) : work()).finally(() => {
      this.#lines.delete(session);
      this.#send(session);
    });
    this.#lines.set(session, line);
  }

  /** Returns the next question of a session that can be sent. Questions after one that waits keep their order. */
  #next(session) {
    const item = this.of(session).find(({ isRefused, turn }) => !isRefused && !turn);
    return item?.isHeld ? undefined : item;
  }

  async #post(item) {
    const { key, body } = item;
    const options = { ...(item.options ?? this.options), signal: undefined, ...(this.#name && { triesMax: Infinity }) };
    const headers = { "content-type": "application/json", "idempotency-key": key };
    try {
      const { turn } = await request("/v1/turns", options, { method: "POST", headers, body });
      this.#accept(item, turn);
      await this.#write((store) => store.delete(key));
      this.#tabs?.postMessage({ key, turn });
    } catch (error) {
      const isForNow = [429, 503].includes(error.status);
      // Another key, token or moment may do. Every other refusal is final, and the next question is sent.
      item.isHeld = this.#name !== null && (isForNow || error.status === 401 || !(error instanceof TailraceError));
      item.isRefused = !item.isHeld;
      const { name, message, status, code } = error;
      item.error = { name, message, status, code };
      if (item.isHeld && isForNow) setTimeout(() => this.retry((one) => one === item), 1000 * Math.min(WAIT_S_MAX, Math.max(WAIT_S_MIN, error.retryAfterS ?? 0)));
      // Each read of the store shows the error again, here and in other tabs.
      if (item.isStored) await this.#put(item);
      this.#tell({ ...item, error });
      item.settle?.(null);
      item.settle = null;
    }
  }

  #accept(item, turn) {
    item.turn = turn;
    // Each listener takes the question from its list when it has the turn.
    const heard = this.#tell(item);
    Promise.all(heard).finally(() => this.#remove(item.key));
    item.settle?.(turn);
    item.settle = null;
  }

  #remove(key) {
    const item = this.#items.find((one) => one.key === key);
    this.#items = this.#items.filter((one) => one !== item);
    item?.settle?.(item.turn ?? null);
  }

  #tell(item) {
    return [...this.#listeners].map((listener) => listener(item));
  }

  /** Stores a question, unless the browser has no room. */
  async #put(item) {
    const { key, name, session, body, at, isRefused = false, error = null } = item;
    item.isStored = (await this.#write((store) => store.put({ key, name, session, body, at, isRefused, error }))) !== null;
    this.#tell();
    this.#tabs?.postMessage({});
  }

  /** Returns the result of a request to the store; null if the browser has none, or refuses it. */
  async #write(work, mode = "readwrite") {
    const database = await this.#database;
    if (!database) return null;
    return new Promise((resolve) => {
      try {
        const transaction = database.transaction(STORE, mode);
        const made = work(transaction.objectStore(STORE));
        // A full disk is reported at the end of the transaction.
        transaction.oncomplete = () => resolve(made.result ?? true);
        transaction.onabort = transaction.onerror = () => resolve(null);
      } catch {
        resolve(null);
      }
    });
  }
}

/** Returns the database; null where the browser has none, as in some private windows. */
function openDatabase() {
  return new Promise((resolve) => {
    try {
      const opening = globalThis.indexedDB.open("tailrace", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: "key" }).createIndex("name", "name");
      opening.onsuccess = () => resolve(opening.result);
      opening.onerror = opening.onblocked = () => resolve(null);
    } catch {
      resolve(null);
    }
  });
}
