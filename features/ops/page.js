// Draws the panels of /ops/values and refreshes them. Text enters the page only as text, never as markup.
import { byId, element, storage } from "/page/dom.js";

const REFRESH_MS = 5000;
const KEY = "tailrace-ops-key";
const LINES_SHOWN = 6;
const COLOURS = 8;
const SVG = "http://www.w3.org/2000/svg";
// The coordinates of a chart. The browser stretches them to its size.
const [WIDTH, HEIGHT] = [600, 100];
const SPAN_MIN_S = 120;

const charts = new Map();
let overview = null;
let cursor = null;

function shape(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Numbers and units. The names of units are Grafana's.

function digits(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.001) return value.toPrecision(1);
  return Number(value.toPrecision(size >= 1000 ? 4 : size >= 10 ? 3 : 2)).toString();
}

function scale(value, steps) {
  const [factor, unit] = steps.find(([factor]) => Math.abs(value) >= factor) ?? steps.at(-1);
  return digits(value / factor) + unit;
}

const COUNT = [[1e9, " G"], [1e6, " M"], [1e3, " k"], [1, ""]];
const BYTES = [[1e9, " GB"], [1e6, " MB"], [1e3, " kB"], [1, " B"]];
const SECONDS = [[3600, " h"], [60, " min"], [1, " s"], [1e-3, " ms"], [1e-6, " µs"]];
const UNITS = {
  s: (value) => (value === 0 ? "0 s" : scale(value, SECONDS)),
  bytes: (value) => scale(value, BYTES),
  Bps: (value) => `${scale(value, BYTES)}/s`,
  ops: (value) => `${scale(value, COUNT)}/s`,
  reqps: (value) => `${scale(value, COUNT)}/s`,
  percentunit: (value) => `${digits(100 * value)} %`,
  currencyUSD: (value) => `$${digits(value)}`,
  bool: (value) => (value ? "yes" : "no"),
};

function format(value, unit) {
  if (value === null || value === undefined) return "–";
  return (UNITS[unit] ?? ((one) => scale(one, COUNT)))(value);
}

// States.

function stateOf(chart) {
  const now = chart.lines.map((line) => line.values.at(-1)).filter((value) => value !== null);
  if (!now.length) return { state: "empty", value: null };
  const value = chart.is_minimum ? Math.min(...now) : Math.max(...now);
  const crosses = (limit) => (chart.is_minimum ? value < limit : value >= limit);
  return { state: crosses(chart.critical) ? "critical" : crosses(chart.warning) ? "warning" : "ok", value };
}

const maximum = (line) => Math.max(...line.values.filter((value) => value !== null));

// One chart.

class Panel {
  constructor(chart, number) {
    this.colours = new Map();
    this.isExpanded = false;
    const [title, tip] = [`title-${number}`, `tip-${number}`];
    const about = element("button", { type: "button", className: "about", textContent: chart.title });
    about.setAttribute("aria-describedby", tip);
    this.now = element("span", { className: "now" });
    const description = element("p", { id: tip, className: "tip", textContent: chart.description });
    description.setAttribute("role", "tooltip");
    this.svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", tabindex: 0 });
    this.cursor = shape("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.top = element("span", { className: "top" });
    this.from = element("span");
    this.till = element("span");
    this.none = element("span", { className: "none", textContent: "No values in this period" });
    this.rows = element("tbody");
    this.heading = element("th", { scope: "col" });
    const head = element("thead", {}, element("tr", {}, element("td"), this.heading, element("th", { scope: "col", textContent: "max" })));
    this.table = element("table", {}, head, this.rows);
    this.more = element("button", { type: "button", className: "more" });
    this.foot = element("p", { className: "foot" });
    this.root = element(
      "article",
      { id: `panel-${number}` },
      element("div", { className: "head" }, element("h3", { id: title }, about, description), this.now),
      element("div", { className: "plot" }, this.svg, this.top, this.none),
      element("p", { className: "axis" }, this.from, this.till),
      this.table,
      this.more,
      this.foot,
    );
    this.root.setAttribute("aria-labelledby", title);
    this.table.setAttribute("aria-labelledby", title);
    this.more.addEventListener("click", () => {
      this.isExpanded = !this.isExpanded;
      this.draw(this.chart);
    });
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      moveCursor(nearest((event.clientX - box.left) / box.width));
    });
    this.svg.addEventListener("pointerleave", () => moveCursor(null));
    this.svg.addEventListener("blur", () => moveCursor(null));
    this.svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const last = overview.times.length - 1;
      moveCursor(Math.max(0, Math.min(last, (cursor ?? last) + step)));
    });
  }

  draw(chart) {
    this.chart = chart;
    const { state, value } = stateOf(chart);
    this.root.className = state;
    const crossed = state === "warning" || state === "critical" ? element("span", { className: "unseen", textContent: `, ${state}` }) : "";
    this.now.replaceChildren(format(value, chart.unit), crossed);
    const order = [...chart.lines].sort((one, other) => maximum(other) - maximum(one));
    for (const line of chart.lines) {
      if (!this.colours.has(line.name)) this.colours.set(line.name, this.colours.size % COLOURS);
    }
    const lines = this.isExpanded ? order : order.slice(0, LINES_SHOWN);
    this.more.hidden = order.length <= LINES_SHOWN;
    this.more.textContent = this.isExpanded ? "show fewer" : `show all ${order.length}`;
    this.none.hidden = order.length > 0;
    this.table.hidden = order.length === 0;
    this.drawLines(chart, lines);
    this.listLines(chart, lines);
    this.drawFoot(chart);
    this.svg.setAttribute("aria-label", `${chart.title}, now ${this.now.textContent}. Arrow keys show earlier values.`);
    this.showValues();
  }

  drawLines(chart, lines) {
    const highest = Math.max(0, ...lines.map(maximum));
    const limits = [["warning", chart.warning], ["critical", chart.critical]];
    // A limit far above the lines is left out: it would flatten them.
    const near = limits.filter(([, limit]) => limit > 0 && highest > 0 && limit <= (chart.is_minimum ? 3 : 1.6) * highest);
    const top = 1.08 * Math.max(highest, ...near.map(([, limit]) => limit)) || 1;
    const y = (value) => HEIGHT * (1 - value / top) - 0.5;
    const drawn = near.map(([name, limit]) => shape("line", { class: `limit ${name}`, x1: 0, x2: WIDTH, y1: y(limit), y2: y(limit) }));
    for (const line of [...lines].reverse()) {
      let path = "";
      let isOpen = false;
      line.values.forEach((value, index) => {
        // A single value between two gaps is drawn as a dot.
        if (value !== null) path += `${isOpen ? "L" : "M"}${x(index).toFixed(1)} ${y(value).toFixed(2)}${isOpen ? "" : "h0.01"}`;
        isOpen = value !== null;
      });
      drawn.push(shape("path", { class: `l${this.colours.get(line.name)}`, d: path }));
    }
    this.svg.replaceChildren(...drawn, this.cursor);
    this.top.textContent = highest || near.length ? format(top / 1.08, chart.unit) : "";
    this.from.textContent = lines.length ? `−${format(spanS(), "s")}` : "";
    this.till.textContent = lines.length ? "now" : "";
  }

  listLines(chart, lines) {
    this.cells = lines.map((line) => ({ line, cell: element("td") }));
    this.rows.replaceChildren(
      ...this.cells.map(({ line, cell }) => {
        const key = element("span", { className: `key l${this.colours.get(line.name)}` });
        const name = element("th", { scope: "row", title: line.name }, key, line.name || "(no name)");
        return element("tr", {}, name, cell, element("td", { textContent: format(maximum(line), chart.unit) }));
      }),
    );
  }

  drawFoot(chart) {
    const word = chart.is_minimum ? "below" : "from";
    const [warning, critical] = [chart.warning, chart.critical].map((limit) => format(limit, chart.unit));
    const hasNone = chart.is_minimum && chart.warning === 0;
    const limits = hasNone ? "no threshold" : warning === critical ? `critical ${word} ${critical}` : `warning ${word} ${warning}, critical ${word} ${critical}`;
    const section = `RUNBOOK: ${chart.section.replaceAll("-", " ")}`;
    const link = overview.runbook
      ? element("a", { href: `${overview.runbook}#${chart.section}`, rel: "noreferrer", target: "_blank", textContent: section })
      : element("span", { textContent: section, title: "In docs/RUNBOOK.md. TAILRACE_RUNBOOK_URL makes it a link." });
    const since = chart.counted_since ? [element("span", { textContent: `counted since ${clock(chart.counted_since)}` })] : [];
    this.foot.replaceChildren(element("span", { textContent: limits }), ...since, link);
  }

  // Shows the values at the cursor, or the newest ones.
  showValues() {
    const index = cursor ?? overview.times.length - 1;
    this.heading.textContent = cursor === null ? "now" : clock(overview.times[index]);
    for (const { line, cell } of this.cells) cell.textContent = format(line.values[index], this.chart.unit);
    this.cursor.setAttribute("visibility", cursor === null ? "hidden" : "visible");
    if (cursor !== null) for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, x(index));
  }
}

// Time. A chart spans the whole history, and at least SPAN_MIN_S.

function spanS() {
  const { times } = overview;
  return Math.max(SPAN_MIN_S, times.length ? times.at(-1) - times[0] : 0);
}

function x(index) {
  const { times } = overview;
  return WIDTH * (1 - (times.at(-1) - times[index]) / spanS());
}

function nearest(share) {
  const { times } = overview;
  const at = times.at(-1) - (1 - share) * spanS();
  let best = 0;
  times.forEach((time, index) => {
    if (Math.abs(time - at) < Math.abs(times[best] - at)) best = index;
  });
  return best;
}

const clock = (time) => new Date(time * 1000).toLocaleTimeString();

function moveCursor(index) {
  if (index === cursor) return;
  cursor = index;
  requestAnimationFrame(() => charts.forEach((panel) => panel.showValues()));
}

// The page.

function build() {
  let number = 0;
  charts.clear();
  byId("groups").replaceChildren();
  const sections = overview.groups.map((group, index) => {
    const grid = element("div", { className: "grid" });
    for (const chart of group.charts) {
      number += 1;
      const panel = new Panel(chart, number);
      charts.set(number, panel);
      grid.append(panel.root);
    }
    const id = `group-${index}`;
    byId("groups").append(element("a", { href: `#${id}`, textContent: group.title }));
    return element("section", { id }, element("h2", { textContent: group.title }), element("p", { className: "quiet", textContent: group.description }), grid);
  });
  byId("panels").replaceChildren(...sections);
}

function draw() {
  if (!charts.size) build();
  const all = overview.groups.flatMap((group) => group.charts);
  all.forEach((chart, index) => charts.get(index + 1).draw(chart));
  byId("version").textContent = overview.version;
  const source = overview.source === "prometheus" ? "from Prometheus" : `sampled every ${format(overview.every_s, "s")}`;
  byId("clock").textContent = `${overview.times.length ? clock(overview.times.at(-1)) : "no sample yet"} · ${source} · rates over ${format(overview.window_s, "s")}`;
  drawState(all);
  drawNotices(all);
}

function drawState(all) {
  const found = all.map((chart, index) => ({ chart, index, ...stateOf(chart) }));
  const crossed = ["critical", "warning"].flatMap((name) => found.filter((one) => one.state === name));
  const words = crossed.length ? `${crossed.length} of ${all.length} panels ${crossed.length === 1 ? "has" : "have"} crossed a threshold:` : "No panel has crossed its threshold.";
  const links = crossed.map((one) => element("a", { href: `#panel-${one.index + 1}`, textContent: one.chart.title }));
  show(crossed[0]?.state ?? "", words, links);
}

function show(className, words, links) {
  const state = byId("state");
  const text = [words, ...links.map((link) => link.textContent)].join("|");
  state.className = className;
  // A screen reader announces each replacement, so replace only a changed text.
  if (state.dataset.text === text) return;
  state.dataset.text = text;
  state.replaceChildren(element("span", { className: "dot" }), element("span", { textContent: words }), ...links);
}

function drawNotices(all) {
  const notices = overview.problems.map((problem) => element("p", { className: "notice", textContent: problem }));
  const turns = all.find((chart) => chart.title === "Turns by outcome");
  if (!turns.lines.some((line) => maximum(line) > 0) && !overview.problems.length) {
    const key = storage.getItem(KEY) ? "-H 'Authorization: Bearer YOUR-KEY' " : "";
    const command = `curl -N ${location.origin}/v1/turns ${key}-H 'Content-Type: application/json' -H 'Accept: text/event-stream' -d '{"message": "Why is the sky blue?"}'`;
    notices.push(element("p", { className: "notice" }, "No turn has ended in this period. Send one, and the panels fill within seconds:", element("code", { textContent: command })));
  }
  byId("notices").replaceChildren(...notices);
}

// Values.

async function load(key) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch("/ops/values", { headers, cache: "no-store" });
  const body = await response.json();
  if (response.ok) return body;
  throw Object.assign(new Error(body.error.message), { status: response.status });
}

function askForKey(message) {
  storage.removeItem(KEY);
  byId("login").hidden = false;
  for (const id of ["state", "notices", "panels"]) byId(id).hidden = true;
  if (message) byId("refusal").textContent = message;
  byId("key").focus();
}

async function refresh() {
  const key = storage.getItem(KEY);
  try {
    const before = overview?.version;
    overview = await load(key);
    // Another version may have other panels. Not a reload: while a version replaces another, either may answer.
    if (before && before !== overview.version) build();
    byId("login").hidden = true;
    for (const id of ["state", "notices", "panels"]) byId(id).hidden = false;
    document.body.classList.remove("stale");
    draw();
  } catch (error) {
    if (error.status === 401 || error.status === 403) return askForKey(key ? error.message : "");
    document.body.classList.add("stale");
    show("critical", `The gateway returns no values (${error.message}). The page tries again in ${REFRESH_MS / 1000} s.`, []);
  }
  setTimeout(next, REFRESH_MS);
}

// A hidden tab sends no requests.
function next() {
  if (!document.hidden) return refresh();
  document.addEventListener("visibilitychange", next, { once: true });
}

byId("login").addEventListener("submit", (event) => {
  event.preventDefault();
  storage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  refresh();
});
refresh();
