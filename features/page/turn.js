// One turn on the page: the question, the answer as it grows, and what can be done with both.
import { element } from "./dom.js";
import { copyText, Markdown } from "./markdown.js";
import { costOf } from "./requests.js";

// After a frame that took long, the next one waits a multiple of it: the page stays responsive.
const REST = 3;
const QUEUED = "This question waits in the queue. It is asked when the answer before has ended.";
/** The types of blocks that are files, and what they are called without a title. */
export const FILES = { image: "A picture", document: "A document" };

/** The view of a turn, from its record (`GET /v1/turns/{turn}`) and from events (tailrace.js). `acts`: see page.js. */
export class Turn {
  #parts = [];
  #drawn = [];
  #frame = 0;
  #restUntil = 0;

  constructor(record, acts) {
    this.acts = acts;
    this.branches = element("span", { className: "branches" });
    // A screen reader does not see which side a text is on.
    this.question = element("div", { className: "question", role: "group", ariaLabel: "Message" });
    this.text = element("div", { className: "text" });
    this.waiting = element("span", { className: "waiting" });
    this.place = element("p", { className: "quiet", hidden: true });
    this.lost = element("p", { className: "lost-line" });
    this.failure = element("p", { className: "failure", hidden: true });
    this.foot = element("div", { className: "acts" });
    this.answer = element("div", { className: "answer", role: "group", ariaLabel: "Answer" }, element("span", { className: "stroke" }), this.text, this.place, this.waiting, this.lost, this.failure, this.foot);
    this.root = element("article", { className: "turn" }, this.question, this.answer);
    this.show(record);
  }

  get id() {
    return this.record.turn;
  }

  /** The functions of session.js take a Map of turns with `turn` and `parent`. */
  get turn() {
    return this.record.turn;
  }

  get parent() {
    return this.record.parent;
  }

  get isRunning() {
    return this.record.outcome === "running";
  }

  get plainText() {
    return this.#parts.filter((part) => part.kind === "text").map((part) => part.text).join("\n\n");
  }

  /** The text as the log has it, without what separates its parts on the page. */
  get wholeText() {
    return this.#parts.filter((part) => part.kind === "text").map((part) => part.text).join("");
  }

  /** Shows a record, in place of all that was shown. */
  show(record) {
    this.record = record;
    this.cursor = record.cursor;
    this.#parts = record.content.map(partOf).filter(Boolean);
    this.question.replaceChildren(...questionOf(record.input, this.acts), this.#questionActs());
    this.draw();
    this.drawFoot();
  }

  /** Takes an event of tailrace.js. */
  take(event) {
    this.cursor = event.cursor;
    this.isWaiting = event.type === "waiting";
    if (!this.isWaiting) this.place.hidden = true;
    const { index = 0 } = event;
    const known = (kind) => this.#parts.find((part) => part.kind === kind && part.index === index);
    if (event.type === "delta" || event.type === "thinking") {
      const kind = event.type === "delta" ? "text" : "thinking";
      const part = known(kind);
      if (part) part.text += event.text;
      else this.#add({ kind, index, text: event.text });
    } else if (event.type === "tool_use" && event.name) {
      this.#add({ kind: "tool", index, name: event.name, text: "" });
    } else if (event.type === "tool_use") {
      const part = known("tool");
      if (part) part.text += event.partial_json;
    } else if (event.type === "block" && event.block) {
      const part = partOf(event.block, index);
      // The input of a tool that the provider runs follows.
      if (part?.kind === "tool" && !Object.keys(event.block.input ?? {}).length) part.text = "";
      if (part) this.#add(part);
    } else if (event.type === "reset") {
      this.#parts = [];
    } else if (event.type === "waiting") {
      this.place.hidden = false;
      this.place.textContent = `Waiting for the model: ${event.reason}.`;
    } else if (event.type === "start") {
      Object.assign(this.record, { turn: event.turn, session: event.session, model: event.model });
      this.place.hidden = !event.queue_position;
      if (event.queue_position) this.place.textContent = `In the queue: about number ${event.queue_position}.`;
    }
    this.#frame ||= requestAnimationFrame(() => this.#drawSoon());
  }

  /** Adds a part in the order of the content blocks. */
  #add(part) {
    const before = this.#parts.findLastIndex((one) => one.index <= part.index);
    this.#parts.splice(before + 1, 0, part);
  }

  #drawSoon() {
    const now = performance.now();
    if (now < this.#restUntil) return (this.#frame = requestAnimationFrame(() => this.#drawSoon()));
    this.#frame = 0;
    this.acts.keepAtEnd(() => this.draw());
    this.#restUntil = performance.now() + REST * (performance.now() - now);
  }

  draw() {
    // An answer that began anew has other parts. A part may also come between others.
    if (this.#drawn.some((drawn, at) => drawn.kind !== this.#parts[at]?.kind || drawn.index !== this.#parts[at].index)) {
      this.#drawn = [];
      this.text.replaceChildren();
    }
    this.#parts.forEach((part, index) => {
      this.#drawn[index] ??= this.#begin(part);
      this.#drawn[index].draw(part.text, this.isRunning && index === this.#parts.length - 1);
    });
    if (!this.isRunning || (this.#parts.length && !this.isWaiting)) this.place.hidden = true;
    this.waiting.hidden = !this.isRunning || this.#parts.at(-1)?.kind === "text";
  }

  /** Begins a part of the answer; returns what draws it. */
  #begin({ kind, index, name }) {
    if (kind === "text") {
      const root = element("div");
      this.text.append(root);
      const markdown = new Markdown(root);
      return { kind, index, draw: (text, isOpen) => markdown.draw(text, isOpen) };
    }
    const body = kind === "thinking" ? element("div", { dir: "auto" }) : element("pre");
    const summary = element("summary");
    this.text.append(element("details", {}, summary, body));
    return {
      kind,
      index,
      draw(text, isOpen) {
        const thinking = isOpen ? "Thinking\u2026" : "Thinking";
        summary.textContent = kind === "tool" ? `Tool call: ${name}` : kind === "block" ? wordOf(name) : thinking;
        if (body.textContent !== text) body.textContent = text;
      },
    };
  }

  /** `state`: `live`, `lost` or nothing. */
  mark(state) {
    this.answer.classList.toggle("live", state === "live");
    this.answer.classList.toggle("lost", state === "lost");
    const rest = this.id ? "The answer goes on at the server, and its rest is shown" : "The question is sent";
    this.lost.textContent = state === "lost" ? `The connection is lost. ${rest} as soon as it is back.` : "";
  }

  fail(message) {
    this.record.outcome = "failed";
    this.record.error = { message };
    this.draw();
    this.drawFoot();
  }

  #questionActs() {
    const { acts } = this;
    const copy = button("Copy", () => acts.copy(this, copy));
    const edit = button("Edit", () => acts.edit(this));
    return element("div", { className: "acts" }, this.branches, ...(acts.isReadOnly ? [copy] : [copy, edit]));
  }

  /** Shows which of the turns with the same parent this one is. */
  drawBranches(siblings) {
    const at = siblings.indexOf(this.id);
    if (siblings.length < 2) return this.branches.replaceChildren();
    const step = (label, name, by) => {
      const made = button(label, () => this.acts.choose(siblings[at + by], name));
      made.disabled = !siblings[at + by];
      made.ariaLabel = name;
      return made;
    };
    this.branches.replaceChildren(step("\u2039", "Earlier branch", -1), `${at + 1} / ${siblings.length}`, step("\u203a", "Later branch", 1));
  }

  drawFoot() {
    const { record, acts } = this;
    const { outcome, error } = record;
    this.answer.classList.toggle("failed", outcome === "failed");
    this.failure.hidden = outcome !== "failed";
    this.failure.textContent = outcome === "failed" ? `The answer failed: ${error?.message ?? "no reason was given"}` : "";
    const share = button("Share", () => acts.share(this, share));
    const timeline = element("a", { className: "plain", href: `/turns/${this.id}`, textContent: "Timeline" });
    const shown = this.id && !acts.isReadOnly ? [share, timeline] : [];
    const isQueued = acts.isQueued?.(this);
    if (isQueued || this.place.textContent === QUEUED) Object.assign(this.place, { hidden: !isQueued, textContent: isQueued ? QUEUED : "" });
    // A mark of text that is written would be wrong.
    this.waiting.hidden ||= Boolean(isQueued);
    if (this.isRunning) return this.foot.replaceChildren(...(isQueued && this.id ? [button("Take back", () => acts.withdraw(this))] : shown));
    const copy = button("Copy", () => copyText(this.plainText, copy));
    const again = button("Try again", () => acts.again(this));
    const other = modelList(acts.otherModels?.(this) ?? [], (model) => acts.again(this, model));
    const download = button("Download", () => save(`${this.id || "answer"}.md`, `# ${textOf(record.input)}\n\n${this.plainText}\n`));
    const meta = element("span", { className: "meta", textContent: formatFigures(record, acts.isReadOnly), title: explain(record) });
    this.foot.replaceChildren(copy, ...(acts.isReadOnly ? [] : [again, ...other]), download, ...shown, meta);
  }
}

function button(textContent, click) {
  const made = element("button", { type: "button", className: "plain", textContent });
  made.addEventListener("click", click);
  return made;
}

/** Returns a list of models, in an array; an empty one if there is nothing to choose. `choose` gets the id of the chosen model. */
function modelList(models, choose) {
  if (!models.length) return [];
  const options = models.map(({ id, display_name }) => element("option", { value: id, textContent: display_name ?? id }));
  const list = element("select", { className: "plain", ariaLabel: "Try again with" }, element("option", { value: "", textContent: "Other model" }), ...options);
  list.addEventListener("change", () => {
    if (list.value) choose(list.value);
    list.value = "";
  });
  return [list];
}

/** Lets the browser save a text as a file. */
function save(name, text) {
  const href = URL.createObjectURL(new Blob([text], { type: "text/markdown" }));
  element("a", { href, download: name }).click();
  URL.revokeObjectURL(href);
}

/** Returns a part of the answer from a content block of a record. */
function partOf(block, index) {
  if (block.type === "text") return { kind: "text", index, text: block.text };
  if (block.type === "thinking") return { kind: "thinking", index, text: block.thinking };
  if (block.type === "redacted_thinking") return null;
  if (block.type.endsWith("tool_use")) return { kind: "tool", index, name: block.name, text: block.partial_json ?? JSON.stringify(block.input, null, 2) };
  return { kind: "block", index, name: block.type, text: JSON.stringify(block, null, 2) };
}

/** Returns the type of a block in words: `Web search tool result`. */
const wordOf = (type) => `${type[0].toUpperCase()}${type.slice(1).replaceAll("_", " ")}`;

const blocksOf = (message) => (typeof message.content === "string" ? [{ type: "text", text: message.content }] : message.content);

/** Returns the content blocks of the last message. */
export const lastBlocks = (input) => blocksOf(input.at(-1) ?? { content: "" });

/** Returns the text of the last message. */
export const textOf = (input) => lastBlocks(input).filter((block) => block.type === "text").map(shownText).join("\n\n");

/** Returns the text of a block. A long text is stored beside the log, and the block refers to it. */
const shownText = ({ text }) => (typeof text === "string" ? text : "A long text");

function questionOf(input, acts) {
  const shown = input.filter((message) => message.role === "user").flatMap(blocksOf).map((block) => {
    if (block.type === "text") return block.text && saidOf(block, acts);
    if (block.type === "image" && block.source?.type === "base64") {
      const picture = element("img", { alt: "The attached picture" });
      acts.picture(block.source).then((url) => (picture.src = url), () => picture.replaceWith("A picture"));
      return picture;
    }
    const name = block.title ?? { ...FILES, tool_result: "The result of a tool" }[block.type] ?? block.type;
    return element("div", { className: "said", textContent: name });
  });
  return shown.filter(Boolean);
}

function saidOf(block, acts) {
  const said = element("div", { className: "said", dir: "auto", textContent: shownText(block) });
  if (typeof block.text !== "string") acts.whole(block.text).then((text) => (said.textContent = text), () => {});
  return said;
}

const count = (number) => number.toLocaleString("en");

/** Returns tokens, cost and time of an ended turn. */
function formatFigures({ usage, cost_usd, asked_at, ended_at, outcome, stop_reason }, isReadOnly) {
  if (!usage) return "";
  const read = ["input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"].reduce((sum, name) => sum + (usage[name] ?? 0), 0);
  const seconds = (new Date(ended_at) - new Date(asked_at)) / 1000;
  const time = ended_at ? [`${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`] : [];
  const why = outcome === "cancelled" ? "stopped" : outcome === "completed" ? whyNotWhole(stop_reason) : null;
  return [...(why ? [why] : []), `${count(read)} + ${count(usage.output_tokens ?? 0)} tokens`, ...(isReadOnly ? [] : [costOf(cost_usd)]), ...time].join(" \u00b7 ");
}

const NOT_WHOLE = {
  max_tokens: "cut at the maximum length",
  max_cost: "cut at the maximum cost",
  budget: "cut because a budget is spent",
  model_context_window_exceeded: "cut: the model can read no more",
  refusal: "refused",
  pause_turn: "paused by the model",
  compaction: "no answer yet: the model has summarized the conversation",
};

/** Returns why a completed answer is not whole, in words; null for one that is. docs/API.md has the reasons. */
const whyNotWhole = (reason) => (isWhole(reason) ? null : (NOT_WHOLE[reason] ?? `stopped early: ${reason}`));

const isWhole = (reason) => [null, undefined, "end_turn", "stop_sequence", "tool_use"].includes(reason);

function explain({ model, attempts, asked_at, first_token_at, usage_is_estimated }) {
  const first = first_token_at ? `, first word after ${((new Date(first_token_at) - new Date(asked_at)) / 1000).toFixed(1)} s` : "";
  const tries = attempts > 1 ? `, ${attempts} attempts` : "";
  return `Read and written tokens, cost, time. ${model}${first}${tries}${usage_is_estimated ? ", estimated" : ""}`;
}
