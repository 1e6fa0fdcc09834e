// The page /admin: each section reads the routes below /v1/admin. Text enters the page only as text, never as markup.
import { byId, element } from "/page/dom.js";
import { headers, onSubmit, request, sentence, signIn, UNREACHABLE } from "/page/requests.js";

const SVG = "http://www.w3.org/2000/svg";
const HEALTH_MS = 30_000;
const RETRY_MS = 3000;
const DAY_MS = 86_400_000;
const DAYS = 30;
const PAGE_MAX = 200;
// A credential has 120 requests a minute: keys beyond these pages are shown by their ids.
const NAMED_PAGES = 5;
const NOT_ADMIN = "This key has not the scope `admin`, so it cannot open this page. Enter one that has it.";
const UNKNOWN =
  "The connection was lost, so it is not known whether the change was made. The audit log shows it when the server is back. If a key was created or rotated, its secret is lost: revoke it.";
const LIMIT_NAMES = { usd_day: "a day", usd_month: "a month", requests: "requests a minute", burst: "at once", tokens: "tokens a minute", running: "running turns", streams: "streams", bytes_day: "bytes a day" };
const ACTIONS = { "key.create": "Key created", "key.revoke": "Key revoked", "key.rotate": "Key rotated", "limits.set": "Limits set", "tenant.set": "Users set" };

// Texts.

const count = (number) => number.toLocaleString("en");
const usd = (value) => (value === null || value === undefined ? "–" : `$${value !== 0 && Math.abs(value) < 0.01 ? value.toPrecision(2) : value.toFixed(2)}`);
const clock = (at) => new Date(at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
const ofSeconds = (time) => clock(time * 1000);
const named = (record) => (record?.name ? `“${record.name}”` : "no name");
const limitText = ([name, value]) => (name.startsWith("usd_") ? `$${value} ${LIMIT_NAMES[name]}` : `${count(value)} ${LIMIT_NAMES[name] ?? name}`);
const limitsText = (limits) => Object.entries(limits ?? {}).map(limitText).join(", ") || "–";
const dayText = (time) => new Date(time).toISOString().slice(0, 10);
const weekday = (day) => new Date(day).toLocaleDateString("en", { weekday: "long", timeZone: "UTC" });

// With roles: the style sheet shows a row as a list on a phone, and browsers forget then that it is a row.
const cell = (content, className = "") => element("td", { className, role: "cell" }, ...(Array.isArray(content) ? content : [content]));
const heading = (...content) => element("th", { scope: "row", role: "rowheader" }, ...content);
const tableRow = (...cells) => element("tr", { role: "row" }, ...cells);
const button = (text, label, work) => {
  const made = element("button", { type: "button", className: "plain", textContent: text });
  made.setAttribute("aria-label", label);
  made.addEventListener("click", () => work(made));
  return made;
};

/** Replaces the content of a table. `columns`: the texts of its headings, with their classes. */
function fill(id, columns, rows, none) {
  const head = columns.map(([text, className = ""]) => element("th", { scope: "col", className, role: "columnheader", textContent: text }));
  const body = rows.length ? rows : [tableRow(element("td", { colSpan: columns.length, className: "quiet", role: "cell", textContent: none }))];
  byId(id).role = "table";
  byId(id).replaceChildren(element("thead", { role: "rowgroup" }, tableRow(...head)), element("tbody", { role: "rowgroup" }));
  addRows(id, body);
}

function addRows(id, rows) {
  const names = [...byId(id).tHead.rows[0].cells].map((one) => one.textContent);
  for (const row of rows) [...row.cells].forEach((one, index) => (one.dataset.label = names[index] ?? ""));
  byId(id).tBodies[0].append(...rows);
}

// Requests.

/** Returns the JSON of a response. Asks for another key in place of one without the scope `admin`. */
async function api(path, options) {
  for (;;) {
    const used = headers();
    try {
      return await request(path, options);
    } catch (error) {
      if (error.code !== "scope_missing") throw error;
      await signIn({ message: NOT_ADMIN }, used);
    }
  }
}

const query = (given) => {
  const parts = new URLSearchParams(Object.entries(given).filter(([, value]) => value !== "" && value !== null && value !== undefined));
  return parts.size ? `?${parts}` : "";
};

function say(id, text, ...more) {
  byId(id).replaceChildren(...(text ? [element("p", { className: "notice" }, text, ...more)] : []));
}

// Sections. The part of the address after `#` names the section, and what it shows.

let reading = 0;
let next = null;

const place = () => {
  const [name, given] = location.hash.slice(1).split("?");
  return { name: name in SECTIONS ? name : "spend", given: Object.fromEntries(new URLSearchParams(given)) };
};
const address = (name, given = {}) => `#${name}${query(given)}`;

/** Shows the section of the address; tries again while the gateway cannot be reached. */
async function show() {
  const { name, given } = place();
  const number = ++reading;
  for (const id of Object.keys(SECTIONS)) byId(id).hidden = id !== name;
  for (const link of byId("sections").children) {
    if (link.hash === `#${name}`) {
      link.setAttribute("aria-current", "true");
      link.scrollIntoView({ block: "nearest", inline: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  document.title = `${byId(name).querySelector("h2").textContent} – Tailrace administration`;
  setMore(null);
  try {
    await SECTIONS[name](given, () => number === reading);
    if (number === reading) say("notice");
  } catch (error) {
    if (number !== reading) return;
    const again = element("button", { type: "button", className: "link", textContent: "Try again" });
    again.addEventListener("click", show);
    say("notice", `${sentence(error)} `, again);
    if (error.code === UNREACHABLE) setTimeout(() => number === reading && show(), RETRY_MS);
    // What is refused has no rows: those of the last filter would look like its own.
    else for (const one of byId(name).querySelectorAll("table, .plot, .total, #spend-note")) one.replaceChildren();
  }
}

/** `read`, called with the `after` of the next page, adds its rows. */
function setMore(after, read) {
  next = after && read ? () => read(after) : null;
  byId("more").hidden = !next;
}

byId("more").addEventListener("click", async () => {
  const number = reading;
  try {
    await next?.();
  } catch (error) {
    if (number === reading) say("notice", sentence(error));
  }
});

/** Sets the fields of a filter to what the address says. */
function setFields(form, given) {
  for (const field of form.elements) if (field.name && given[field.name] !== undefined) field.value = given[field.name];
}

function onFilter(name) {
  const form = byId(`${name}-filter`);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = address(name, Object.fromEntries(new FormData(form)));
    if (location.hash === wanted) show();
    else location.hash = wanted;
  });
}

// Spend.

const FILTERS = ["user", "model", "project", "session", "key"];
// The list of turns has no filters by these.
const NOT_OF_TURNS = ["project", "session"];
/** The route and the query of the shown rows. */
let shown = null;

const isOfAll = (by) => ["tenant", "day", "model"].includes(by);

/** Enables the fields that the chosen tenant and groups have. */
function chooseGroups() {
  const { by, and, tenant, field, value } = byId("spend-filter").elements;
  const isOne = tenant.value !== "";
  for (const option of by.options) option.disabled = isOne ? option.value === "tenant" : !isOfAll(option.value);
  if (by.selectedOptions[0]?.disabled) by.value = isOne ? "day" : "tenant";
  and.disabled = !isOne || by.value === "turn";
  for (const option of and.options) option.disabled = option.value === by.value;
  if (and.selectedOptions[0]?.disabled) and.value = "";
  and.parentElement.hidden = and.disabled;
  byId("spend-only").hidden = byId("spend-only").querySelector("fieldset").disabled = !isOne;
  for (const name of NOT_OF_TURNS) byId("spend-filter").elements[name].disabled = by.value === "turn";
  field.disabled = !isOne || !(by.value === "metadata" || (!and.disabled && and.value === "metadata") || value.value);
  field.parentElement.hidden = field.disabled;
}

/** Returns the records of all pages, or of the first `most` pages. */
async function readAll(path, given, most = Infinity) {
  const page = await api(`${path}${query({ ...given, limit: PAGE_MAX })}`);
  for (let read = 1; page.next && read < most; read += 1) {
    const more = await api(`${path}${query({ ...given, limit: PAGE_MAX, after: page.next })}`);
    page.data.push(...more.data);
    page.next = more.next;
  }
  return page;
}

const input = (usage) => (usage.input_tokens ?? 0) + (usage.cache_creation_input_tokens ?? 0) + (usage.cache_read_input_tokens ?? 0);
const counts = (one, turns) => [cell(usd(one.cost_usd), "number"), ...turns, cell(count(input(one.usage)), "number"), cell(count(one.usage.output_tokens ?? 0), "number")];

/** Returns the address of the rows of a row: its values are filters, beside those of the page. Null if it has none. */
function addressOf(given, groups, keys) {
  if (keys.includes(null) || (!given.tenant && groups[0] === "model")) return null;
  const wanted = { ...given, and: "" };
  groups.forEach((group, index) => {
    if (group === "day") wanted.from = wanted.to = keys[index];
    else wanted[group === "metadata" ? "value" : group] = keys[index];
  });
  return address("spend", { ...wanted, by: given.tenant ? nextGroup(wanted) : groups[0] === "tenant" ? "user" : "tenant" });
}

/** Returns what the rows of a row are grouped by. */
function nextGroup(wanted) {
  if (!wanted.model) return "model";
  if (!NOT_OF_TURNS.some((name) => wanted[name])) return "turn";
  return ["user", "session", "day"].find((name) => !wanted[name]);
}

async function spend(given, isShown) {
  const form = byId("spend-filter");
  const now = Date.now();
  const none = Object.fromEntries(["tenant", "and", "value", ...FILTERS].map((name) => [name, ""]));
  setFields(form, { ...none, by: given.tenant ? "day" : "tenant", field: "team", from: dayText(now - (DAYS - 1) * DAY_MS), to: dayText(now), ...given });
  chooseGroups();
  byId("spend-only").open = [...FILTERS, "value"].some((name) => given[name]);
  const wanted = Object.fromEntries(new FormData(form));
  const { tenant, from, to, by, and, field, value } = wanted;
  const path = tenant ? `/v1/admin/tenants/${encodeURIComponent(tenant)}` : "/v1/admin";
  const days = { from, to };
  const only = { ...Object.fromEntries(FILTERS.map((name) => [name, wanted[name]])), ...(value ? { [`metadata[${field}]`]: value } : {}) };
  const groups = [by, ...(and ? [and] : [])];
  const ofDays = await readAll(`${path}/usage`, { ...days, ...only, by: "day" });
  const names = groups.includes("key") ? await readAll("/v1/admin/keys", { tenant }, NAMED_PAGES) : { data: [] };
  const isOfTurns = by === "turn";
  const group = groups.map((one) => (one === "metadata" ? `metadata.${field}` : one)).join(",");
  shown = isOfTurns ? { path: `${path}/turns`, query: { ...days, ...only } } : { path: `${path}/usage`, query: { ...days, ...only, by: group } };
  const page = await api(`${shown.path}${query({ ...shown.query, limit: isOfTurns ? PAGE_MAX : "" })}`);
  if (!isShown()) return;
  const { total } = ofDays;
  const filters = Object.entries(only).filter(([, one]) => one).map(([name, one]) => `, ${name} ${one}`);
  byId("spend-total").replaceChildren(
    element("strong", { textContent: usd(total.cost_usd) }),
    ` · ${count(total.turns)} turns · ${count(total.total_tokens)} tokens · ${tenant || "all tenants"}, ${from} to ${to} (UTC)${filters.join("")} `,
    ...(tenant && !isOfTurns && !NOT_OF_TURNS.some((name) => wanted[name]) ? [element("a", { href: address("spend", { ...wanted, by: "turn", and: "" }), textContent: "Costliest turns" })] : []),
  );
  drawDays(ofDays.data, wanted);
  const nameOf = Object.fromEntries(names.data.map((key) => [key.id, key.name]));
  const titleOf = (one) => (one === "metadata" ? field : one);
  const highest = Math.max(total.cost_usd, Number.MIN_VALUE);
  const ofValue = (name, text) => (text ? [element("a", { href: address("spend", { ...wanted, [name]: text, by: "model", and: "" }), textContent: text })] : "–");
  const turnRow = (one) =>
    tableRow(heading(element("a", { href: `/turns/${encodeURIComponent(one.turn)}`, textContent: one.turn, title: "Needs a key of the tenant" })),
      ...counts(one, []),
      cell(one.model),
      cell(ofValue("user", one.user)),
      cell(ofValue("session", one.session)),
      cell(clock(one.asked_at), "time"),
    );
  const usageRow = (one) => {
    const keys = one.keys ?? [one.key];
    const href = addressOf(wanted, groups, keys);
    const texts = keys.map((key, index) => [key ?? (and ? "–" : `– (no ${titleOf(groups[index])})`), ...(groups[index] === "key" && nameOf[key] ? [element("small", { textContent: nameOf[key] })] : [])]);
    const bar = element("span", { className: "bar" });
    // By a property of the script, which the policy allows, and not by an attribute.
    bar.style.width = `${(100 * one.cost_usd) / highest}%`;
    const [[first, ...more], ...others] = texts;
    return tableRow(heading(href ? element("a", { href, textContent: first, ...(and ? { ariaLabel: keys.join(", ") } : {}) }) : first, ...more),
      ...others.map((content) => cell(content)),
      ...counts(one, [cell(count(one.turns), "number")]),
      cell([bar], "share"),
    );
  };
  const rowOf = isOfTurns ? turnRow : usageRow;
  const tokens = [["Tokens in", "number"], ["Tokens out", "number"]];
  const columns = isOfTurns
    ? [["Turn"], ["Cost", "number"], ...tokens, ["Model"], ["User"], ["Session"], ["Started"]]
    : [...groups.map((one) => [titleOf(one)]), ["Cost", "number"], ["Turns", "number"], ...tokens, ["Share"]];
  const lost = filters.length > 1 ? "With several filters, turns that were deleted, erased or not stored are in no row and no sum." : "";
  const ofRows = isOfTurns
    ? "Turns that were deleted, erased or not stored are not in this list, but in the sum above."
    : "Every grouping has the same sum: the row without a name (–) has the turns without this value, and those that were deleted, erased or not stored.";
  byId("spend-note").textContent = `${lost || ofRows} Costs are rounded; the CSV has them exactly.`;
  fill("spend-rows", columns, page.data.map(rowOf), isOfTurns ? "No such turn is stored." : "No turn has ended on these days.");
  const more = async (after) => {
    const found = await api(`${shown.path}${query({ ...shown.query, after })}`);
    if (!isShown()) return;
    addRows("spend-rows", found.data.map(rowOf));
    setMore(found.next, more);
  };
  setMore(page.next, more);
}

/** Draws a bar for each day, also for those without a turn, and the table of the same values. A click leads to the rows of
 * a day; the keyboard and screen readers have the links of the table. */
function drawDays(records, wanted) {
  const { from, to } = wanted;
  const costs = new Map(records.map((one) => [one.key, one]));
  const days = [];
  for (let time = Date.parse(from); time <= Date.parse(to); time += DAY_MS) days.push(dayText(time));
  const cost = (day) => costs.get(day)?.cost_usd ?? 0;
  const highest = Math.max(0, ...days.map(cost));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${days.length * 10} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const top = days.find((day) => cost(day) === highest);
  svg.setAttribute("aria-label", highest ? `Cost by day from ${from} to ${to}. The highest is ${usd(highest)} on ${top}.` : `No cost from ${from} to ${to}.`);
  days.forEach((day, index) => {
    const height = highest ? (92 * cost(day)) / highest : 0;
    const bar = document.createElementNS(SVG, "rect");
    const title = document.createElementNS(SVG, "title");
    title.textContent = `${weekday(day)}, ${day}: ${usd(cost(day))}`;
    for (const [name, value] of Object.entries({ x: index * 10 + 1, y: 100 - height, width: 8, height })) bar.setAttribute(name, value);
    bar.append(title);
    svg.append(bar);
  });
  const dayAddress = (day) => addressOf(wanted, ["day"], [day]);
  svg.addEventListener("click", ({ clientX }) => {
    const { left, width } = svg.getBoundingClientRect();
    location.hash = dayAddress(days[Math.min(days.length - 1, Math.floor(((clientX - left) / width) * days.length))]);
  });
  const label = (className, textContent) => element("span", { className, textContent });
  byId("plot").replaceChildren(svg, label("highest", highest ? usd(highest) : ""), label("first", from), label("last", to));
  const row = (day) => tableRow(heading(element("a", { href: dayAddress(day), textContent: day })), cell(usd(cost(day)), "number"), cell(count(costs.get(day)?.turns ?? 0), "number"));
  fill("days", [["Day (UTC)"], ["Cost", "number"], ["Turns", "number"]], days.map(row));
}

byId("spend-filter").addEventListener("input", chooseGroups);

/** Saves all rows of the shown grouping as a file, with the exact cost. */
byId("csv").addEventListener("click", async () => {
  try {
    const { path, query: given } = shown;
    const text = await api(`${path}${query({ ...given, format: "csv" })}`);
    const href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    const by = (given.by ?? "turn").replaceAll(/[^\w.-]/g, "-");
    element("a", { href, download: `spend-by-${by}-${given.from}-${given.to}.csv` }).click();
    URL.revokeObjectURL(href);
  } catch (error) {
    say("notice", sentence(error));
  }
});

// Tenants.

async function tenants(given, isShown) {
  const form = byId("tenants-filter");
  setFields(form, { q: "", ...given });
  const read = (after) => api(`/v1/admin/tenants${query({ q: given.q, after })}`);
  const page = await read();
  if (!isShown()) return;
  const hasUsers = page.data.some((one) => one.users !== undefined);
  const rowOf = (one) => {
    const reached = one.reached ?? [];
    const setLimits = button("Limits…", `Limits of ${one.tenant}`, (opener) => openLimits(one.tenant, opener));
    const setUsers = button("Users…", `Users of ${one.tenant}`, (opener) => openUsers(one, opener));
    return tableRow(heading(element("a", { href: address("keys", { tenant: one.tenant }), textContent: one.tenant, title: "Keys of this tenant" })),
      ...(hasUsers ? [cell(one.users ?? "–")] : []),
      cell(limitsText(one.effective)),
      cell(one.reached === null ? "–" : reached.length ? [element("a", { href: "#limits", className: "badge", textContent: `${Math.max(...reached.map((it) => it.percent))} %` })] : ""),
      cell([element("a", { href: address("spend", { tenant: one.tenant }), textContent: "Spend", ariaLabel: `Spend of ${one.tenant}` })]),
      cell([setLimits, ...(hasUsers ? [setUsers] : [])], "acts"),
    );
  };
  const columns = [["Tenant"], ...(hasUsers ? [["Users"]] : []), ["Limits"], ["Reached"], ["Spend"], ["Change"]];
  fill("tenants-rows", columns, page.data.map(rowOf), "No tenant with a key or limits of its own has this in its name.");
  // A tenant that only a token (JWT) names is not in the list.
  if (!page.data.length && /^[a-z0-9_-]{1,64}$/.test(given.q ?? "")) {
    const open = button(`Limits of ${given.q}…`, `Limits of ${given.q}`, (opener) => openLimits(given.q, opener));
    byId("tenants-rows").tBodies[0].append(tableRow(cell([open])));
  }
  const more = async (after) => {
    const found = await read(after);
    if (!isShown()) return;
    addRows("tenants-rows", found.data.map(rowOf));
    setMore(found.next, more);
  };
  setMore(page.next, more);
}

// Keys.

function stateOf(key) {
  const now = Date.now() / 1000;
  if (key.revoked_at) return `revoked ${ofSeconds(key.revoked_at)}`;
  if (key.expires_at === null) return "valid, without an end";
  return `${key.expires_at <= now ? "expired" : "valid until"} ${ofSeconds(key.expires_at)}`;
}

async function keys(given, isShown) {
  const form = byId("keys-filter");
  const wanted = { q: "", tenant: "", state: "valid", ...given };
  setFields(form, wanted);
  const state = wanted.state === "all" ? "" : wanted.state;
  const read = (after) => api(`/v1/admin/keys${query({ ...wanted, state, order: "desc", after })}`);
  const page = await read();
  if (!isShown()) return;
  const rowOf = (key) => {
    const label = `${key.name || key.id} of ${key.tenant}`;
    const isValid = !key.revoked_at && (key.expires_at === null || key.expires_at > Date.now() / 1000);
    const hasBudget = key.limits && ("usd_day" in key.limits || "usd_month" in key.limits);
    const rotate = button("Rotate…", `Rotate ${label}`, (opener) => openRotation(key, opener));
    const revoke = button("Revoke…", `Revoke ${label}`, (opener) => openRevocation(key, opener));
    const budget = button("Budget", `Budget of ${label}`, (opener) => openBudget(key, opener));
    return tableRow(heading(key.name || "–", element("small", { textContent: key.id })),
      cell(key.tenant),
      cell(key.scopes.join(", ")),
      cell(limitsText(key.limits)),
      cell(usd(key.month_usd), "number"),
      cell(key.month_usd === null ? "–" : key.last_used ? clock(key.last_used) : "never"),
      cell(key.replaced_by ? [stateOf(key), element("small", { textContent: `replaced by ${key.replaced_by}` })] : stateOf(key)),
      cell([...(hasBudget ? [budget] : []), ...(isValid && !key.replaced_by ? [rotate] : []), ...(isValid ? [revoke] : [])], "acts"),
    );
  };
  const columns = [["Name"], ["Tenant"], ["Rights"], ["Limits"], ["This month", "number"], ["Last turn"], ["State"], ["Change"]];
  fill("keys-rows", columns, page.data.map(rowOf), "There is no such key.");
  const more = async (after) => {
    const found = await read(after);
    if (!isShown()) return;
    addRows("keys-rows", found.data.map(rowOf));
    setMore(found.next, more);
  };
  setMore(page.next, more);
}

// Limits reached.

async function limits(_, isShown) {
  const read = (after) => api(`/v1/admin/tenants${query({ reached: true, after })}`);
  const page = await read();
  if (!isShown()) return;
  const rowsOf = (found) =>
    found.data.flatMap((tenant) =>
      tenant.reached.map((one) => {
        const owner = one.of === "tenant" ? "the tenant" : one.key ? element("a", { href: address("keys", { q: one.key, state: "all" }), textContent: one.key }) : "requests without a key";
        const share = element("span", { className: one.is_refused ? "badge refused" : "badge", textContent: one.is_refused ? "turns are refused" : `${one.percent} %` });
        return tableRow(heading(element("a", { href: address("tenants", { q: one.tenant }), textContent: one.tenant })),
          cell([owner]),
          cell(limitText([one.budget, one.limit_usd])),
          cell([share]),
          cell(usd(one.spent_usd), "number"),
          cell(clock(one.renews_at), "time"),
        );
      }),
    );
  const columns = [["Tenant"], ["Budget of"], ["Budget"], ["Reached"], ["Spent then", "number"], ["Renews"]];
  fill("limits-rows", columns, rowsOf(page), "No budget has reached a share that is noted (TAILRACE_SOFT_LIMITS).");
  const more = async (after) => {
    const found = await read(after);
    if (!isShown()) return;
    addRows("limits-rows", rowsOf(found));
    setMore(found.next, more);
  };
  setMore(page.next, more);
}

// Audit log.

const plain = (value) => (value === null || value === undefined ? "none" : typeof value === "object" ? Object.entries(value).map(([name, one]) => `${name} ${plain(one)}`).join(", ") || "none" : String(value));

/** Returns what an entry has changed, in words. */
function changeOf({ action, before, after, error }) {
  const failed = error ? [`failed: ${error}`] : [];
  if (action === "key.create") return [`${named(after)}, ${after.scopes.join(", ")}, limits: ${limitsText(after.limits)}`, ...failed].join("; ");
  if (action === "key.rotate") return [`new key ${after.id}`, ...failed].join("; ");
  if (action === "key.revoke") return [named(before), ...failed].join("; ");
  const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])].filter((name) => plain(before?.[name]) !== plain(after?.[name]));
  return [...names.map((name) => `${name}: ${plain(before?.[name])} → ${plain(after?.[name])}`), ...failed].join("; ") || "nothing";
}

async function audit(_, isShown) {
  const read = (after) => api(`/v1/admin/audit${query({ after })}`);
  const page = await read();
  if (!isShown()) return;
  const rowOf = (entry) =>
    tableRow(cell(clock(entry.at), "time"),
      heading(ACTIONS[entry.action] ?? entry.action, ...(entry.error ? [element("small", { className: "problem", textContent: "failed" })] : [])),
      cell(entry.target === entry.tenant ? entry.tenant : [entry.tenant, element("small", { textContent: entry.target })]),
      cell(changeOf(entry)),
      cell([entry.by, element("small", { textContent: entry.address })]),
    );
  fill("audit-rows", [["Time"], ["Change"], ["Of"], ["Details"], ["By"]], page.data.map(rowOf), "No change was made.");
  const more = async (after) => {
    const found = await read(after);
    if (!isShown()) return;
    addRows("audit-rows", found.data.map(rowOf));
    setMore(found.next, more);
  };
  setMore(page.next, more);
}

const SECTIONS = { spend, tenants, keys, limits, audit };

// Dialogs. Each gives the focus back to the button that has opened it, or to the heading of the section.

let opener = null;

function openDialog(id, from) {
  const dialog = byId(id);
  opener = from;
  const problem = dialog.querySelector(".problem");
  if (problem) problem.textContent = "";
  dialog.showModal();
  return dialog;
}

/** `work`, called when the form is submitted, makes the change and returns what to say. It closes the dialog unless it fails. */
function onChange(id, work) {
  const dialog = byId(id);
  const main = dialog.querySelector(".row .main");
  dialog.querySelector(".leave").addEventListener("click", () => dialog.close());
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    main.disabled = true;
    try {
      const said = await work(dialog.querySelector("form").elements);
      dialog.close();
      if (said) say("done", said);
      await show();
      if (!document.querySelector("dialog[open]")) focusAgain();
    } catch (error) {
      dialog.querySelector(".problem").textContent = error.code === UNREACHABLE ? UNKNOWN : sentence(error);
    } finally {
      main.disabled = false;
    }
  });
}

/** A change draws the rows again: the button that has opened the dialog may be gone. */
function focusAgain() {
  (opener?.isConnected ? opener : byId(place().name).querySelector("h2")).focus();
}

for (const dialog of document.querySelectorAll("dialog:not(#login)")) {
  dialog.addEventListener("close", () => document.querySelector("dialog[open]") ?? focusAgain());
}

const limitsOf = (fields, names) => Object.fromEntries(names.filter((name) => fields[name].value !== "").map((name) => [name, Number(fields[name].value)]));

/** Shows the secret of a new key, once. */
function showSecret(created, about) {
  byId("secret").value = created.key;
  byId("secret-about").textContent = about;
  byId("secret-copied").textContent = "";
  openDialog("secret-dialog", opener);
  byId("secret").select();
}

byId("copy").addEventListener("click", async () => {
  byId("secret").select();
  try {
    await navigator.clipboard.writeText(byId("secret").value);
    byId("secret-copied").textContent = "Copied.";
  } catch {
    byId("secret-copied").textContent = "This browser does not allow that: press Ctrl+C.";
  }
});
onSubmit(byId("secret-dialog"));
// Not by Escape, which is soon pressed: no other response has the secret.
byId("secret-dialog").addEventListener("cancel", (event) => event.preventDefault());
byId("secret-dialog").addEventListener("close", () => (byId("secret").value = ""));

byId("new-key").addEventListener("click", (event) => {
  const dialog = openDialog("key-dialog", event.currentTarget);
  const form = dialog.querySelector("form");
  form.reset();
  form.elements.tenant.value = byId("keys-filter").elements.tenant.value;
  readTenantNames();
});
onChange("key-dialog", async (fields) => {
  const scopes = [...fields.scope].filter((one) => one.checked).map((one) => one.value);
  if (!scopes.length) throw new Error("Choose at least one right.");
  const given = limitsOf(fields, ["usd_day", "usd_month", "requests", "running"]);
  const body = {
    tenant: fields.tenant.value,
    name: fields.name.value.trim(),
    scopes,
    limits: Object.keys(given).length ? given : null,
    expires_in_s: fields.days.value ? (Number(fields.days.value) * DAY_MS) / 1000 : null,
  };
  const created = await api("/v1/admin/keys", { method: "POST", body });
  byId("key-dialog").close();
  showSecret(created, `${created.id} of ${created.tenant}. No other page and no command shows the key again.`);
});

let chosen = null;

function openRotation(key, from) {
  chosen = key;
  openDialog("rotate-dialog", from).querySelector(".about").textContent = `${named(key)}, ${key.id} of ${key.tenant}. The new key has the same rights, limits and lifetime, and shares the budget.`;
}
onChange("rotate-dialog", async (fields) => {
  const made = await api(`/v1/admin/keys/${chosen.id}/rotate`, { method: "POST", body: { grace_s: Number(fields.grace.value) } });
  byId("rotate-dialog").close();
  showSecret(made, `${made.id} of ${made.tenant}, which replaces ${chosen.id}. No other page and no command shows the key again.`);
});

function openRevocation(key, from) {
  chosen = key;
  openDialog("revoke-dialog", from).querySelector(".about").textContent = `${named(key)}, ${key.id} of ${key.tenant}.`;
}
onChange("revoke-dialog", async () => {
  await api(`/v1/admin/keys/${chosen.id}`, { method: "DELETE" });
  return `${chosen.id} of ${chosen.tenant} is revoked.`;
});

function reservedText({ limit, spent, left }) {
  const reserved = limit - spent - left;
  return reserved >= 0.00005 ? `${usd(reserved)} reserved for running turns, ` : "";
}

const useText = (one) => `${limitText([one.name, one.limit])}: ${usd(one.spent)} spent, ${reservedText(one)}${usd(one.left)} left until ${clock(one.renews_at)}${one.left === 0 ? ". New turns are refused until then." : ""}`;

function listUses(dialog, budgets, none) {
  const texts = budgets?.length ? budgets.map(useText) : [budgets ? none : "The use of budgets cannot be read at the moment."];
  dialog.querySelector(".uses").replaceChildren(...texts.map((text) => element("li", { textContent: text })));
}

async function openBudget(key, from) {
  try {
    const [found] = (await api(`/v1/admin/keys${query({ id: key.id })}`)).data;
    const dialog = openDialog("budget-dialog", from);
    dialog.querySelector(".about").textContent = `${named(key)}, ${key.id} of ${key.tenant}. Limits: ${limitsText(key.limits)}.`;
    listUses(dialog, found?.budgets ?? null, "No budget.");
  } catch (error) {
    say("notice", sentence(error));
  }
}
onSubmit(byId("budget-dialog"));

let tenant = null;

async function openLimits(name, from) {
  try {
    tenant = await api(`/v1/admin/tenants/${encodeURIComponent(name)}/limits`);
    const dialog = openDialog("limits-dialog", from);
    byId("limits-of").textContent = `Limits of ${tenant.tenant}`;
    listUses(dialog, tenant.budgets, "No budget is set.");
    const form = dialog.querySelector("form");
    form.reset();
    for (const field of form.elements) {
      if (!(field.name in LIMIT_NAMES)) continue;
      field.value = tenant.limits[field.name] ?? "";
      field.placeholder = field.name in tenant.limits ? "" : (tenant.effective[field.name] ?? "no limit");
    }
    warn();
  } catch (error) {
    say("notice", sentence(error));
  }
}

/** Says that a budget is below what is spent, before it is set. */
function warn() {
  const { elements } = byId("limits-dialog").querySelector("form");
  const below = (tenant?.budgets ?? []).filter((one) => elements[one.name].value !== "" && Number(elements[one.name].value) < one.spent);
  byId("limits-dialog").querySelector(".warning").textContent = below.map((one) => `${usd(one.spent)} is spent already: ${limitText([one.name, elements[one.name].value])} is less.`).join(" ");
}
byId("limits-dialog").addEventListener("input", warn);
onChange("limits-dialog", async (fields) => {
  const limits = limitsOf(fields, Object.keys(LIMIT_NAMES));
  // A limit of a newer version stays.
  for (const name of Object.keys(tenant.limits)) if (!(name in LIMIT_NAMES)) limits[name] = tenant.limits[name];
  const set = await api(`/v1/admin/tenants/${encodeURIComponent(tenant.tenant)}/limits`, { method: "PUT", body: { limits, expected: tenant.limits } });
  const spent = (set.budgets ?? []).filter((one) => one.spent >= one.limit).map((one) => ` ${useText(one)}`);
  return `The limits of ${set.tenant} are set: ${limitsText(set.limits)}.${spent.join("")}`;
});

function openUsers(record, from) {
  tenant = record;
  const dialog = openDialog("users-dialog", from);
  dialog.querySelector(".about").textContent = `Tenant ${record.tenant}. Keys without a user see everything in both cases.`;
  dialog.querySelector("form").elements.users.value = record.users;
}
onChange("users-dialog", async (fields) => {
  const body = { users: fields.users.value, expected: tenant.users };
  await api(`/v1/admin/tenants/${encodeURIComponent(tenant.tenant)}`, { method: "PUT", body });
  return `The users of ${tenant.tenant} are ${fields.users.value}.`;
});

// The names of tenants that fields propose.

async function readTenantNames() {
  try {
    const { data } = await api(`/v1/admin/tenants${query({ limit: PAGE_MAX })}`);
    byId("tenant-names").replaceChildren(...data.map((one) => element("option", { value: one.tenant })));
  } catch {
    // The names are only a help.
  }
}

// The health of the server, which needs no key: for example that the model refuses the key.

async function checkHealth() {
  if (!document.hidden) {
    try {
      const report = await (await fetch("/health", { cache: "no-store" })).json();
      const text = report.detail ? `The server is ${report.status}: ${report.detail}. ` : "";
      if (byId("health").textContent !== (text && `${text}What to do: the RUNBOOK.`)) {
        say("health", text, text ? "What to do: " : "", ...(text ? [element("a", { href: "/guides/RUNBOOK", textContent: "the RUNBOOK" }), "."] : []));
      }
    } catch {
      // The sections say that the gateway cannot be reached.
    }
  }
  setTimeout(checkHealth, HEALTH_MS);
}

for (const name of ["spend", "tenants", "keys"]) onFilter(name);
addEventListener("hashchange", () => {
  say("done");
  show();
});
byId("sections").addEventListener("click", (event) => {
  // The same section again: read it again.
  if (event.target.hash && event.target.hash === location.hash) show();
});
await show();
readTenantNames();
checkHealth();
