// The demo beside a chat under `tailrace up`: its processes, what breaks them, a second reader, and the ids of the events.
import { byId, element, storage } from "./dom.js";
import { resume } from "./libraries.js";
import { headers, request } from "./requests.js";

const PROCESSES = "/demo/processes";
const POLL_MS = 1000;
const CUT_MS = 4000;
const LINES_MAX = 80;
const SHOWN_CHARS = 120;
const RUNNING = "Now cut the connection or kill a process, with a button below: the answer goes on where it was.";
const WITHOUT_TOKEN = "To kill processes from here, open the address that tailrace up printed.";

const count = (number) => number.toLocaleString("en");

/** The panel. `watcher`: the functions that page.js calls, `begin()` starts a long answer, `remark()` shows anew whether the
 * answer waits for another generator. */
export class Demo {
  /** The turn that is followed, its last event's cursor, the generator that writes it, and the process id of that generator, 0
   * if it has ended. A generator's id is the name of its process with a suffix, which is new at each start. */
  #turn = null;
  #cursor = "";
  #generator = null;
  #pid = null;
  #processes = [];
  /** Whether the last request for the processes was answered. */
  #isKnown = false;
  #cuts = new Set();
  #isCut = false;
  #broken = { cuts: 0, kills: 0 };
  #wasOrphaned = false;
  /** The request for the generator that is under way. */
  #asked = null;
  #second = null;
  #problem = "";

  constructor(watcher, tokenName, begin, remark) {
    this.remark = remark;
    this.token = () => storage.getItem(tokenName) ?? "";
    this.openName = `${tokenName}-open`;
    Object.assign(watcher, {
      fetch: (url, init, turn) => this.#fetch(url, init, turn),
      event: (turn, event) => this.#event(turn, event),
      state: (turn, state) => state === "reconnecting" && turn === this.#turn && this.#note("the connection is lost", "bad"),
      ended: (turn, shown) => this.#ended(turn, shown),
      shown: (turn) => this.#follow(turn),
      isOrphaned: () => this.#isOrphaned(),
    });
    document.head.append(element("link", { rel: "stylesheet", href: "/page/demo.css" }));
    this.begin = button("Start a long answer", begin, "main");
    this.cut = button("Cut my connection", () => this.#cut());
    this.killGenerator = button("Kill this generator", () => this.#kill(this.#writer()?.name));
    this.killGateway = button("Kill this gateway", () => this.#kill(this.#gatewayName()));
    this.second = button("Second reader", () => this.#toggleSecond());
    this.second.ariaPressed = "false";
    this.parts = element("ul", { className: "parts" });
    this.hint = element("p", { className: "quiet" });
    this.proof = element("p", { className: "proof", role: "status", hidden: true });
    this.ids = element("ol", { className: "ids" });
    this.other = element("section", { className: "other", hidden: true });
    const close = button("Close", () => this.show(false));
    const head = element("div", { className: "bar" }, element("h2", { id: "demo-title", textContent: "Break it" }), close);
    const breakers = element("div", { className: "breakers" }, this.cut, this.killGenerator, this.killGateway, this.second);
    const log = element("section", { className: "log" }, element("h3", { textContent: "Event ids" }), this.ids);
    const said = element("div", { className: "said-here" }, this.hint, this.proof);
    byId("demo").append(head, element("div", { className: "inside" }, said, this.begin, this.parts, breakers, this.other, log));
    this.#draw();
    this.#poll();
  }

  show(isShown) {
    byId("demo").hidden = !isShown;
    byId("demo-open").hidden = isShown;
    if (isShown) storage.setItem(this.openName, "1");
    else storage.removeItem(this.openName);
  }

  // The connection of this page.

  /** Opens a connection that `Cut my connection` can break, for a reader of `turn`. */
  async #fetch(url, init, turn) {
    if (this.#isCut) throw new TypeError("the connection is cut");
    // Only a reader's connection has a signal: `Stop` sends a request of its own.
    if (!init.signal) return fetch(url, init);
    const cut = new AbortController();
    this.#cuts.add(cut);
    const response = await fetch(url, { ...init, signal: AbortSignal.any([init.signal, cut.signal]) });
    turn.gateway = response.headers.get("tailrace-process");
    if (turn === this.#turn && this.#cursor) this.#note(`goes on after ${this.#cursor}`, "good");
    this.#draw();
    return response;
  }

  #cut() {
    this.#isCut = true;
    this.#broken.cuts += 1;
    for (const cut of this.#cuts) cut.abort();
    this.#cuts.clear();
    this.#draw();
    setTimeout(() => {
      this.#isCut = false;
      this.#draw();
      // It ends the waiting of tailrace.js, as the network's return does.
      dispatchEvent(new Event("online"));
    }, CUT_MS);
  }

  // The answer.

  /** Follows the last turn of the shown chat while it runs, and keeps its result until another one is shown. */
  #follow(shown) {
    const turn = shown === this.#turn || shown?.isRunning ? shown : null;
    if (turn === this.#turn) return;
    this.#closeSecond();
    Object.assign(this.#broken, { cuts: 0, kills: 0 });
    [this.#turn, this.#cursor, this.#generator, this.#pid] = [turn, turn?.cursor ?? "", null, null];
    this.ids.replaceChildren();
    this.proof.hidden = true;
    this.#draw();
  }

  #event(turn, event) {
    if (turn !== this.#turn) return;
    this.#cursor = event.cursor;
    this.#line(event.cursor, event.text ?? event.type);
    if (event.type === "start") this.#draw();
    // It is perhaps the first one of the next generator.
    if (this.#isOrphaned()) this.#readGenerator().then(() => this.#draw(), () => {});
  }

  #ended(turn, shown) {
    if (turn !== this.#turn) return;
    this.#draw();
    const { text, attempts, outcome } = turn.record;
    if (outcome !== "completed") return;
    const isSame = shown === text;
    const broken = [["cut", this.#broken.cuts], ["kill", this.#broken.kills]].filter(([, number]) => number);
    const over = broken.map(([name, number]) => `${number} ${name}${number > 1 ? "s" : ""}`).join(" and ");
    const by = attempts > 1 ? `, written in ${attempts} attempts` : "";
    this.proof.textContent = isSame
      ? `Whole: ${count(text.length)} characters, each once${over ? `, over ${over}` : ""}${by}. The page has what the log has.`
      : "The text on this page is not what the log has. Please report it.";
    this.proof.classList.toggle("bad", !isSame);
    this.proof.hidden = false;
  }

  #note(text, kind) {
    this.ids.prepend(element("li", { className: kind, textContent: text }));
  }

  #line(id, text) {
    // Each event is one line of the list, so its line breaks are shown as \u21b5.
    this.ids.prepend(element("li", {}, element("b", { textContent: id }), ` ${text.replace(/\n/g, "\u21b5")}`));
    while (this.ids.childElementCount > LINES_MAX) this.ids.lastChild.remove();
  }

  // The processes.

  async #poll() {
    try {
      if (!byId("demo").hidden && !document.hidden) await Promise.all([this.#readProcesses(), this.#readGenerator()]);
    } catch {
      // The gateway is being started again.
    }
    this.#draw();
    setTimeout(() => this.#poll(), POLL_MS);
  }

  async #readProcesses() {
    if (!this.token()) return;
    await this.#ask("GET", "");
  }

  async #ask(method, query) {
    try {
      const response = await fetch(PROCESSES + query, { method, headers: { "tailrace-demo": this.token() }, cache: "no-store" });
      const body = await response.json();
      this.#isKnown = response.ok;
      this.#problem = response.ok ? "" : body.error.message;
      if (response.ok) this.#processes = body;
    } catch (error) {
      this.#isKnown = false;
      throw error;
    }
  }

  /** Returns whether the generator that wrote the answer has ended, here or outside, and no other one has gone on yet. */
  #isOrphaned() {
    return Boolean(this.#turn?.isRunning && this.#pid !== null && this.#writer()?.pid !== this.#pid);
  }

  /** Asks the log which generator writes the answer, once at a time. */
  #readGenerator() {
    return (this.#asked ??= this.#askGenerator().finally(() => (this.#asked = null)));
  }

  async #askGenerator() {
    const turn = this.#turn;
    if (!turn?.id || !turn.isRunning) return;
    const { attempts } = await request(`/v1/turns/${turn.id}/timeline`);
    const generator = attempts.at(-1)?.generator ?? null;
    if (turn !== this.#turn || generator === this.#generator) return;
    // After the generator is known: the process that writes has the id of now.
    await this.#readProcesses();
    if (turn !== this.#turn) return;
    const isTakeover = Boolean(this.#generator);
    this.#generator = generator;
    this.#pid = this.#writer() ? (this.#writer().pid ?? 0) : null;
    if (isTakeover) this.#note(`${this.#writer()?.name ?? generator} takes over`, "good");
  }

  /** Returns the process that the generator of the answer has, or had. */
  #writer() {
    return this.#processes.find(({ name }) => this.#generator === name || this.#generator?.startsWith(`${name}-`));
  }

  async #kill(name) {
    const { pid } = this.#processes.find((one) => one.name === name) ?? {};
    if (!pid) return;
    this.#broken.kills += 1;
    this.#note(`${name} is killed`, "bad");
    // The answer may be lost with the gateway that sends it.
    await this.#ask("POST", `?${new URLSearchParams({ process: name, pid })}`).catch((error) => {
      if (!error.status) return;
      this.#broken.kills -= 1;
      this.#note(`${name} was not killed: ${error.message}`, "bad");
    });
    // `up` lists a process until it has ended.
    for (const one of this.#processes) if (one.pid === pid) one.pid = null;
    this.#draw();
  }

  #gatewayName() {
    const all = this.#processes.filter(({ role }) => role === "gateway");
    return (all.find(({ pid }) => String(pid) === this.#turn?.gateway) ?? (all.length === 1 ? all[0] : null))?.name;
  }

  #draw() {
    const isRunning = Boolean(this.#turn?.isRunning);
    const isOrphaned = this.#isOrphaned();
    const writes = !isOrphaned && this.#writer()?.name;
    const has = { [writes]: "writes the answer", [this.#gatewayName()]: "streams it to you" };
    const items = this.#processes.map(({ name, pid }) => {
      const isUp = this.#isKnown && pid;
      const role = isUp ? isRunning && has[name] : this.#isKnown ? "restarting" : "unknown";
      const state = element("span", { className: "state", textContent: role || "" });
      return element("li", { className: `${isUp ? "up" : "down"}${isUp && role ? " used" : ""}` }, element("b", { textContent: name }), state, element("span", { className: "pid", textContent: isUp ? pid : "" }));
    });
    if (this.parts.textContent !== items.map((one) => one.textContent).join("")) this.parts.replaceChildren(...items);
    // While the answer runs, nothing is hidden or inserted, so that no button moves.
    this.begin.disabled = isRunning;
    this.cut.disabled = !isRunning || this.#isCut;
    this.cut.textContent = this.#isCut ? `Cut for ${CUT_MS / 1000} s` : "Cut my connection";
    const isReady = isRunning && this.#isKnown;
    this.killGenerator.disabled = !isReady || !writes;
    this.killGateway.disabled = !isReady || !this.#gatewayName();
    this.second.disabled = !this.#turn?.id;
    const before = "Start an answer, then break something in the middle of it: it continues where it was.";
    const hint = this.#problem || (this.token() ? (isRunning ? RUNNING : before) : WITHOUT_TOKEN);
    this.hint.hidden = !this.proof.hidden && !this.#problem;
    if (this.hint.textContent !== hint) this.hint.textContent = hint;
    if (isOrphaned === this.#wasOrphaned) return;
    this.#wasOrphaned = isOrphaned;
    this.remark();
  }

  // The second reader: a connection of its own, from the start of the answer.

  #toggleSecond() {
    if (this.#second) return this.#closeSecond();
    const state = element("span", { className: "mark" });
    const text = element("p");
    const figures = element("p", { className: "quiet" });
    this.other.replaceChildren(element("div", { className: "row" }, element("h3", { textContent: "Second reader" }), state), text, figures);
    this.other.hidden = false;
    this.second.ariaPressed = "true";
    const show = (words) => Object.assign(state, { textContent: words, className: `mark ${words}` });
    this.#second = resume(this.#turn.id, {
      headers,
      triesMax: Infinity,
      onState: (now) => show(now === "ended" ? "has it all" : now),
      onText: (whole, { cursor }) => {
        text.textContent = whole.length > SHOWN_CHARS ? `\u2026${whole.slice(-SHOWN_CHARS)}` : whole;
        figures.textContent = `${count(whole.length)} characters, up to event ${cursor}`;
      },
    });
    this.#second.done.catch(() => {});
  }

  #closeSecond() {
    this.#second?.close();
    this.#second = null;
    this.other.hidden = true;
    this.second.ariaPressed = "false";
  }
}

function button(textContent, click, className = "") {
  const made = element("button", { type: "button", className, textContent });
  made.addEventListener("click", click);
  return made;
}
