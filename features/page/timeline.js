// The page /turns/{turn}: the log of a turn as a timeline, and its replay at the speed at which it was written.
import { byId, decodePart, element } from "./dom.js";
import { resume } from "./libraries.js";
import { Markdown } from "./markdown.js";
import { costOf, gateway, headers, request } from "./requests.js";
import { textOf } from "./turn.js";

const SVG = "http://www.w3.org/2000/svg";
const REFRESH_MS = 2000;
const [WIDTH, HEIGHT] = [1000, 100];
const LANES_OF_READERS = 12;

const turn = decodePart(location.pathname.slice("/turns/".length));
let timeline = null;
/** What was shown from `ms` on: the characters of `whole` from `start` to `end`. */
const frames = [{ ms: 0, start: 0, end: 0 }];
let whole = "";
let events = [];
let isPlaying = false;
let position = 0;
/** Whether the end of the turn is shown, also when it grows. */
let isAtEnd = true;
let playhead = null;
const markdown = new Markdown(byId("text"));
let shown = "";

const count = (number) => number.toLocaleString("en");
const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 1 : 0)} s`;
const since = (at) => new Date(at) - new Date(timeline.accepted_at);
/** The length of the timeline: to the end of the turn, or to its last entry. */
const length = () => Math.max(1, timeline.end ? since(timeline.end.at) : (timeline.writes.at(-1)?.[1] ?? 0));
/** A generator's id without the suffix that is new at each start. */
const short = (generator) => generator.replace(/-[0-9a-f]{6}$/, "");

// The timeline.

function draw() {
  const { end, model, session, attempts, accepted_at } = timeline;
  byId("found").hidden = false;
  const outcome = end?.outcome ?? "running";
  byId("headline").textContent = `${outcome[0].toUpperCase()}${outcome.slice(1)}${end ? ` in ${seconds(since(end.at))}` : ""}`;
  const why = end?.code ?? end?.cause;
  if (why) byId("headline").append(` (${why})`);
  document.title = `${byId("headline").textContent} \u2013 Tailrace`;
  const figures = end ? [`${count(end.usage.input_tokens ?? 0)} + ${count(end.usage.output_tokens ?? 0)} tokens`, costOf(end.cost_usd)] : [];
  const tries = attempts.length ? [`${attempts.length} attempt${attempts.length > 1 ? "s" : ""}`] : [];
  const chat = element("a", { href: `/#${encodeURIComponent(session ?? "")}`, textContent: "its chat" });
  const words = [model, new Date(accepted_at).toLocaleString(), ...tries, ...figures].filter(Boolean).join(" \u00b7 ");
  const next = end?.successor ? [" \u00b7 ", element("a", { href: `/turns/${end.successor}`, textContent: "the turn that changed it" })] : [];
  byId("about").replaceChildren(`${words} \u00b7 `, chat, ...next, element("br"), element("span", { textContent: turn }));
  document.querySelector(".answer").classList.toggle("live", !end || isPlaying);
  drawLanes();
  drawSteps();
  byId("position").max = length();
  byId("position").step = Math.max(1, Math.round(length() / 500));
  seek(isAtEnd && !isPlaying ? length() : position);
}

function drawLanes() {
  const lanes = [lane("Written by", attemptBars(), "attempts"), lane("Log", [...pauseBars(), writeBars()], "log")];
  const readers = timeline.readers.filter(({ report }) => since(report.opened_at) <= length()).slice(0, LANES_OF_READERS);
  readers.forEach((reader, index) => lanes.push(lane(`Reader ${index + 1}`, [readerBar(reader)], "reader")));
  playhead = element("span", { className: "playhead" });
  const over = element("div", { className: "over" }, playhead);
  const axis = element("div", { className: "lane axis" }, element("span"), element("div", { className: "track" }, element("span", { textContent: "0 s" }), element("span", { textContent: seconds(length()) })));
  byId("lanes").replaceChildren(...lanes, axis, over);
  byId("lanes").ariaLabel = `${timeline.attempts.length} attempts, ${timeline.pauses.length} pauses and ${readers.length} readers in ${seconds(length())}. The list of steps has the same as text.`;
}

const lane = (name, bars, kind) => element("div", { className: `lane ${kind}` }, element("span", { textContent: name }), element("div", { className: "track" }, ...bars));

/** A bar from `from` to `till`, in milliseconds. */
function bar(className, from, till, text = "") {
  const made = element("span", { className: `bar-of ${className}`, textContent: text, title: text });
  const share = (ms) => 100 * Math.min(1, Math.max(0, ms / length()));
  Object.assign(made.style, { left: `${share(from)}%`, width: `max(3px, ${share(till) - share(from)}%)` });
  return made;
}

function attemptBars() {
  return timeline.attempts.map((one, index) => {
    const next = timeline.attempts[index + 1];
    const till = next ? since(one.last_event_at ?? one.at) : length();
    const name = [`${one.attempt}: ${short(one.generator)}`, one.cause].filter(Boolean).join(", ");
    return bar(next ? "attempt broken" : "attempt", since(one.at), till, name);
  });
}

const pauseBars = () => timeline.pauses.map(({ at, seconds: s }) => bar("pause", since(at), since(at) + 1000 * s, `${s.toFixed(1)} s`));

/** Every entry as a line, higher with more characters: a joined delta stands out. */
function writeBars() {
  const most = timeline.writes.reduce((max, [, , chars]) => Math.max(max, chars), 1);
  const lines = timeline.writes.map(([, ms, chars]) => {
    const x = (WIDTH * ms) / length();
    return `M${x.toFixed(1)} ${HEIGHT}V${(HEIGHT - 8 - (HEIGHT - 8) * (chars / most)).toFixed(1)}`;
  });
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", lines.join(""));
  svg.append(path);
  return svg;
}

function readerBar({ report, sent }) {
  const till = report.closed_at ? since(report.closed_at) : length();
  const isCut = !["ended", "open"].includes(report.ending);
  const start = report.cursor ? `resumed after ${report.cursor}` : "from the start";
  const how = report.ending === "lost" ? "lost with its gateway" : `${start}, ${report.ending}`;
  const sentCount = timeline.entries ? `: ${count(sent)} entries sent` : "";
  return bar(`reader-of ${isCut ? "cut" : ""}`, since(report.opened_at), till, `${how}${sentCount}`);
}

function drawSteps() {
  const rows = timeline.steps.map(({ at, text }) => element("tr", {}, element("td", { textContent: (since(at) / 1000).toFixed(3) }), element("td", { textContent: text })));
  byId("steps").tBodies[0].replaceChildren(...rows);
  const recorded = { true: "It is in the database.", false: "It is not yet in the database." }[timeline.recorded] ?? "";
  byId("delivered").textContent = `Delivery: ${timeline.delivered}. ${recorded}`;
}

// The replay.

/** Makes the frames from the events and the times of their entries. Events of a turn that has left the log have none. */
function join() {
  const times = new Map(timeline.writes.map(([seq, ms]) => [String(seq), ms]));
  let [start, end] = [0, 0];
  frames.length = 1;
  whole = "";
  for (const { cursor, type, text } of events) {
    if (type === "delta") whole += text;
    if (type === "reset") start = whole.length;
    if (type !== "delta" && type !== "reset") continue;
    end = whole.length;
    frames.push({ ms: times.get(cursor) ?? length(), start, end });
  }
}

/** Shows the turn as it was `ms` after it was accepted. */
function seek(ms) {
  position = Math.min(length(), ms);
  isAtEnd = position === length();
  let [low, high] = [0, frames.length - 1];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (frames[middle].ms <= position) low = middle;
    else high = middle - 1;
  }
  const text = whole.slice(frames[low].start, frames[low].end);
  if (text !== shown) markdown.draw((shown = text), low < frames.length - 1);
  if (isPlaying) byId("text").scrollTop = byId("text").scrollHeight;
  byId("position").value = position;
  byId("clock").textContent = `${seconds(position)} of ${seconds(length())}`;
  byId("position").ariaValueText = byId("clock").textContent;
  if (playhead) playhead.style.left = `${(100 * position) / length()}%`;
}

let before = 0;
let frame = 0;

/** Shows the events that have arrived since the last frame. The next request of the timeline returns their times. */
function grow() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    join();
    if (isPlaying || !isAtEnd) return;
    seek(length());
    byId("text").scrollTop = byId("text").scrollHeight;
  });
}

function step(now) {
  if (!isPlaying) return;
  seek(position + (now - before) * Number(byId("speed").value));
  before = now;
  if (position >= length()) return pause();
  requestAnimationFrame(step);
}

function pause() {
  isPlaying = false;
  byId("play").textContent = position < length() ? "Go on" : "Replay";
  document.querySelector(".answer").classList.toggle("live", !timeline.end);
}

byId("play").addEventListener("click", () => {
  if (isPlaying) return pause();
  if (position >= length()) seek(0);
  isPlaying = true;
  byId("play").textContent = "Pause";
  document.querySelector(".answer").classList.add("live");
  before = performance.now();
  requestAnimationFrame(step);
});
byId("position").addEventListener("input", () => {
  const { value, step } = byId("position");
  // The last step of the slider may be shorter.
  seek(Number(value) + Number(step) > length() ? length() : Number(value));
  pause();
});

// Data.

async function read() {
  timeline = await request(`/v1/turns/${encodeURIComponent(turn)}/timeline`);
  byId("notice").hidden = true;
  join();
  draw();
  if (!timeline.end) setTimeout(readAgain, REFRESH_MS);
}

/** A gateway may be away for a moment, which is shown. */
function readAgain() {
  read().catch((error) => {
    show(error);
    if (error.status !== 404) setTimeout(readAgain, REFRESH_MS);
  });
}

const show = (error) => {
  byId("notice").textContent = error.status === 404 ? "There is no such turn. It may have been deleted." : error.message;
  byId("notice").hidden = false;
};

/** Reads the events of the turn, over as many connections as it takes. */
async function follow() {
  const onEvent = (event) => {
    events.push(event);
    if (!timeline.end) grow();
  };
  const answer = resume(turn, { headers, triesMax: Infinity, onEvent });
  await answer.done;
  join();
  draw();
}

/** Requests and shows the question, which is not among the events. */
async function readQuestion() {
  const { input } = await request(`/v1/turns/${encodeURIComponent(turn)}`);
  byId("asked").replaceChildren(element("div", { className: "said", dir: "auto", textContent: textOf(input) || "A question without text" }));
  byId("asked").hidden = false;
}

async function readModel() {
  gateway.isSimulated = (await request("/v1/models?limit=1")).is_simulated;
  draw();
}

// The timeline asks for a key if one is needed.
const first = read();
first.then(follow).catch(show);
for (const work of [readQuestion, readModel]) first.then(work).catch(() => {});
