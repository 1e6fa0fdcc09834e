// The page at `/`: chats over the API of this gateway. An answer goes on after a reload, a lost connection or a restart.
import { drawCalls } from "./calls.js";
import { byId, decodePart, element, storage } from "./dom.js";
import { ask, branchTo, childrenOf, lastOf, outboxOf, resume, whole } from "./libraries.js";
import { copyText } from "./markdown.js";
import { gateway, headers, request, sentence, signIn, onSubmit, UNREACHABLE } from "./requests.js";
import { FILES, lastBlocks, textOf, Turn } from "./turn.js";

const FILE_BYTES_MAX = 20_000_000;
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const TITLE_CHARS_MAX = 60;
const TURNS_AT_ONCE = 50;
const CAUGHT_UP_MS = 2500;
const ORPHANED = "waiting for another generator";
const SHARED_S = 86_400;
const SHARED_CHARS_MAX = 500;
const FOUND_MAX = 50;
const FOUND_CHARS = 80;
// A page of rare combinations of frequent words may have no turn.
const PAGES_MAX = 20;
const TYPING_MS = 250;
const NOTICE_MS = 6000;
const AGAIN_MS = 2000;
const TITLE_SOURCE_CHARS = 2000;
const GONE = "There is no such chat. It may have been deleted.";
const WAIT = "Wait for the answer, or stop it (Escape).";
const QUEUED = "The question waits in the queue.";
const EXAMPLES = [
  "Explain why rivers meander, with a small table.",
  "Write a Python function that merges two sorted lists, with a test.",
  "Count to three hundred, slowly.",
];

const scroll = byId("scroll");
const question = byId("question");

/** The chat on the page. `turns`: all turns by id, oldest first; `leaf`: the last one that is shown; `isNew`: whether the
 * server has no session of it yet; `reading`: whether its turns were read, when that is known; `pictures`: the URLs of its
 * pictures, which keep their Blobs in memory until they are revoked. */
let chat = emptyChat();
/** The chats of the list. */
let chats = [];
let nextChats = null;
/** The draft: the attached files, and the turn whose question is edited. */
let files = [];
let edited = null;

/** Hooks for the demo. */
const watcher = { fetch: (url, init) => fetch(url, init), event() {}, state() {}, ended() {}, shown() {}, isOrphaned: () => false };

function emptyChat() {
  const empty = { id: null, isNew: true, title: "", earlier: null, turns: new Map(), leaf: null, model: "", system: "" };
  return { ...empty, reading: Promise.resolve(true), answers: new Set(), pictures: [] };
}

// Notices.

let noticed = 0;

/** Shows a notice. One that reports no failure ends by itself, by a click, or with Escape. */
function notify(text, isBad = true) {
  clearTimeout(noticed);
  if (!isBad) noticed = setTimeout(() => notify(""), NOTICE_MS);
  byId("notice").role = isBad ? "alert" : "status";
  byId("notice").textContent = text;
  byId("notice").classList.toggle("bad", isBad);
  byId("notice").hidden = !text;
}

const DEGRADED = "The model refuses the key of this server: new answers fail until its operator corrects that.";

/** Shows whether new answers fail because the model refuses the server's key, as `/readyz` says. */
async function checkModel() {
  const { state } = await fetch("/readyz", { cache: "no-store" }).then((answer) => answer.json()).catch(() => ({}));
  if (state === "degraded") notify(DEGRADED, true);
  else if (byId("notice").textContent === DEGRADED) notify("");
}

byId("notice").addEventListener("click", () => byId("notice").classList.contains("bad") || notify(""));

/** Speaks to a screen reader. The answer itself is not a live region: it would be read word by word. */
const speak = (text) => (byId("spoken").textContent = text);

let caughtUp = 0;

/** Shows `live` or `reconnecting`; `caught up` for a moment after a lost connection; nothing when no answer runs.
 * While the generator of the answer is known to be gone, a connection brings nothing: the answer waits for another one. */
function mark(state) {
  clearTimeout(caughtUp);
  const shown = byId("mark");
  const isOrphaned = state === "live" && watcher.isOrphaned();
  const isBack = state === "live" && !isOrphaned && shown.textContent === "reconnecting";
  const words = isOrphaned ? ORPHANED : isBack ? "caught up" : (state ?? "");
  Object.assign(shown, { hidden: !words, textContent: words, className: `mark ${words.replaceAll(" ", "-")}` });
  if (state === "reconnecting") speak("Reconnecting.");
  if (isOrphaned) speak("Waiting for another generator.");
  if (isBack) speak("Caught up.");
  if (isBack) caughtUp = setTimeout(() => mark(isBusy() ? "live" : null), CAUGHT_UP_MS);
}

const isBusy = () => [...chat.turns.values()].some((turn) => turn.isRunning);

/** Draws what `work` draws, and stays at the end of the page if the reader was there. */
function keepAtEnd(work) {
  const wasAtEnd = isAtEnd();
  work();
  if (wasAtEnd) scroll.scrollTop = scroll.scrollHeight;
  else drawScrollButton();
}

const isAtEnd = () => scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 90;
const drawScrollButton = () => (byId("to-end").hidden = isAtEnd() || !byId("welcome").hidden);
scroll.addEventListener("scroll", drawScrollButton, { passive: true });
new ResizeObserver(drawScrollButton).observe(scroll);
byId("to-end").addEventListener("click", () => (scroll.scrollTop = scroll.scrollHeight));

// One chat.

/** Opens the chat that the address names. */
async function open() {
  takeDemoToken();
  const hash = location.hash.slice(1);
  if (acts.isReadOnly) return location.reload();
  // A question that the server has not accepted yet is still sent.
  for (const answer of chat.answers) if (answer.turn) answer.close();
  chat.pictures.forEach((url) => URL.revokeObjectURL(url));
  mark(null);
  notify("");
  stopEditing();
  chat = emptyChat();
  if (hash.startsWith("shared=")) return openShared(new URLSearchParams(hash));
  chat.id = decodePart(hash) || null;
  chat.isNew = !chat.id;
  drawChat();
  drawChats();
  question.focus({ preventScroll: true });
  if (chat.id) chat.reading = readChat();
}

/** Reads the chat, again while the server cannot be reached. Returns whether it is shown. */
async function readChat() {
  const opened = chat;
  const isWanted = () => chat === opened;
  const read = async () => {
    const session = await request(`/v1/sessions/${encodeURIComponent(opened.id)}`);
    if (!isWanted()) return;
    Object.assign(chat, { title: titleOf(session), model: session.model ?? "", system: session.system_prompt ?? "" });
    await readTurns();
    if (isWanted()) scroll.scrollTop = scroll.scrollHeight;
  };
  try {
    await persist(read, isWanted);
  } catch (error) {
    if (isWanted()) notify(error.status === 404 ? GONE : sentence(error));
    return false;
  }
  return isWanted();
}

/** Calls `read`, and again while the server cannot answer, as long as `isWanted()`. Throws any other error of `read`. */
async function persist(read, isWanted = () => true) {
  let shown = null;
  while (isWanted()) {
    try {
      await read();
      if (byId("notice").textContent === shown) notify("");
      return;
    } catch (error) {
      // 502 to 504: a gateway or a process behind it is being started again.
      if (error.code !== UNREACHABLE && !(error.status > 501)) throw error;
      // Once: a screen reader would read it again and again.
      if (isWanted() && shown !== sentence(error)) notify((shown = sentence(error)));
    }
    await new Promise((wake) => setTimeout(wake, AGAIN_MS));
  }
}

/** Reads the newest turns of the chat; those that run are followed. `isEarlier`: reads those before the ones that are shown. */
async function readTurns(isEarlier = false) {
  const opened = chat;
  const after = isEarlier ? `&after=${encodeURIComponent(chat.earlier)}` : "";
  const page = await request(`/v1/sessions/${encodeURIComponent(chat.id)}/turns?order=desc&limit=${TURNS_AT_ONCE}${after}`);
  if (chat !== opened) return;
  const [known, { leaf }] = [chat.turns, chat];
  // A question of another tab hides neither the running answer to one of this tab nor a newer one (ids sort by time).
  const isKept = isEarlier || chat.turns.get(chat.leaf)?.asked !== undefined && isBusy();
  // A question that was just sent has no id yet: it may be one of these.
  const unknown = known.has("") ? [] : (page.data ?? page.turns).filter(({ turn }) => !known.has(turn)).reverse();
  if (isEarlier) chat.turns = new Map();
  for (const record of unknown) addTurn(record);
  if (isEarlier) for (const [id, turn] of known) chat.turns.set(id, turn);
  if (isKept || chat.leaf < leaf) chat.leaf = leaf;
  if (isEarlier || !known.size || !leaf) chat.earlier = page.next;
  for (const turn of chat.turns.values()) if (turn.isRunning && !turn.isFollowed) follow(turn, (options) => resume(turn.id, options));
  drawChat();
}

async function readEarlier() {
  const fromEnd = scroll.scrollHeight - scroll.scrollTop;
  await readTurns(true).catch((error) => notify(sentence(error)));
  scroll.scrollTop = scroll.scrollHeight - fromEnd;
}

function addTurn(record) {
  const turn = new Turn(record, acts);
  chat.turns.set(record.turn, turn);
  chat.leaf = record.turn;
  return turn;
}

const earlier = element("button", { type: "button", className: "plain earlier", textContent: "Earlier turns" });
earlier.addEventListener("click", readEarlier);

function drawChat() {
  const path = branchTo(chat.turns, chat.leaf);
  for (const turn of path) turn.drawBranches(childrenOf(chat.turns, turn.parent));
  // A chat without turns has no end to go to, and a new one begins there.
  requestAnimationFrame(drawScrollButton);
  const shown = [...(chat.earlier && path[0]?.parent ? [earlier] : []), ...path.map((turn) => turn.root)];
  const before = byId("turns").childNodes;
  // Elements that are inserted again lose the focus.
  if (shown.length !== before.length || shown.some((one, at) => one !== before[at])) byId("turns").replaceChildren(...shown);
  byId("welcome").hidden = Boolean(chat.id);
  byId("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} \u2013 Tailrace` : "Tailrace";
  const model = models.find(({ id }) => id === chat.model) ?? (chat.model ? { id: chat.model } : models[0]);
  const names = [model?.display_name ?? model?.id ?? "Model", ...(chat.system ? ["system prompt"] : [])];
  byId("setup").firstChild.textContent = names.join(" \u00b7 ");
  drawSend();
}

/** The running turn that is shown first: those after it wait for it. */
const runningTurn = () => {
  let first = null;
  for (let turn = chat.turns.get(chat.leaf); turn?.isRunning; turn = chat.turns.get(turn.parent)) first = turn;
  return first;
};

function drawSend() {
  const isRunning = Boolean(runningTurn());
  watcher.shown(chat.turns.get(chat.leaf) ?? null);
  drawCalls(isRunning ? null : chat.turns.get(chat.leaf)?.record, () => readTurns().catch((error) => notify(sentence(error))));
  byId("steer").hidden = !isRunning;
  byId("send").ariaLabel = isRunning ? "Stop" : "Send";
  byId("send").title = isRunning ? "Stop (Escape)" : "";
  byId("send").querySelector("use").setAttribute("href", isRunning ? "#i-stop" : "#i-send");
}

/** Follows a turn of the chat `followed` until it has ended or another chat is opened. `begin(options)` gives its answer. */
async function follow(turn, begin, followed = chat) {
  turn.isFollowed = true;
  // The input of a tool call is whole in a record only when the call is: such an answer is read from its start.
  const hasCall = turn.record.content.some((block) => block.type === "tool_use");
  let after = hasCall ? "" : turn.cursor;
  let [used, isSteered] = [{}, false];
  if (hasCall) turn.show({ ...turn.record, content: [] });
  for (;;) {
    const answer = begin({
      after,
      headers: () => (used = headers()),
      fetch: (url, init) => watcher.fetch(url, init, turn),
      triesMax: Infinity,
      onEvent(event) {
        if (chat !== followed) {
          answer.close();
          if (event.type === "start") turn.drop?.();
          if (event.type === "start") refresh(followed.id);
          return;
        }
        // Each turn has a stream of its own here.
        if (event.type === "steered") return answer.close((isSteered = true));
        turn.take(event);
        watcher.event(turn, event);
        if (event.type === "start" && !chat.turns.has(event.turn)) placeTurn(turn);
      },
      onState(state) {
        if (chat !== followed || state === "ended") return;
        turn.mark(state === "live" ? "live" : "lost");
        mark(state);
        watcher.state(turn, state);
      },
    });
    followed.answers.add(answer);
    turn.stream = answer;
    if (turn.isStopped) stop(turn);
    try {
      await answer.done.catch((error) => {
        if (!isSteered) throw error;
        refresh(followed.id);
      });
      if (chat !== followed) return;
      const record = await request(`/v1/turns/${turn.id}`);
      if (chat !== followed) return;
      const shown = turn.wholeText;
      keepAtEnd(() => turn.show(record));
      watcher.ended(turn, shown);
      checkModel();
      break;
    } catch (error) {
      if (error.name === "AbortError" || (turn.id && chat !== followed)) return;
      const isRefused = error.status === 401;
      if (isRefused) await signIn(error, used);
      // A stream waits until the server can be reached. Then the record is read again.
      if (isRefused || error.code === UNREACHABLE) {
        if (turn.id) [begin, after] = [(options) => resume(turn.id, options), turn.cursor];
        continue;
      }
      if (!turn.id) return takeBack(turn, error, followed);
      turn.fail(sentence(error));
      break;
    } finally {
      followed.answers.delete(answer);
      turn.mark(null);
    }
  }
  for (const id of childrenOf(chat.turns, turn.id)) chat.turns.get(id).drawFoot();
  if (!turn.parent && turn.record.outcome === "completed") writeTitle(turn, followed);
  speak(`The answer has ended: ${turn.plainText.length} characters.`);
  if (!isBusy() && byId("mark").textContent !== "caught up") mark(null);
  drawSend();
  drawChats();
  // The list could perhaps not be read when the turn began.
  if (!chats.some(({ id }) => id === chat.id)) readChats().catch(() => {});
  tellOtherTabs();
}

/** Lets the model of the operator write the title of a new chat. Its key makes a second request get the first one's answer. */
async function writeTitle(turn, named) {
  const model = document.body.dataset.titlesModel;
  const asked = textOf(turn.record.input);
  if (!model || named.turns.size > 1 || named.title !== (titleFrom(asked) || "Files")) return;
  const exchange = [asked, turn.plainText].map((text) => cut(text, TITLE_SOURCE_CHARS));
  const message = `Write a title of at most six words for this conversation. Reply with the title alone.\n\n${exchange.join("\n\n")}`;
  const answer = ask({ message, model, store: false, max_tokens: 60 }, { headers, idempotencyKey: `title-${named.id}` });
  const { outcome, text } = await answer.done.catch(() => ({}));
  const title = cut((text ?? "").trim().split("\n")[0], TITLE_CHARS_MAX);
  if (outcome !== "completed" || !title) return;
  await request(`/v1/sessions/${encodeURIComponent(named.id)}`, { method: "PATCH", body: { title } }).catch(() => {});
  named.title = title;
  if (chat === named) drawChat();
  readChats().catch(() => {});
  tellOtherTabs();
}

/** The questions that the browser keeps until the server has them: those of the key of this tab, or of the user of its token. */
const outbox = () => {
  const opened = outboxOf({ offline: `page ${nameOfKey()}`, headers });
  if (!outboxes.has(opened)) opened.listen(takeSent, new AbortController().signal);
  outboxes.add(opened);
  return opened;
};
const outboxes = new Set();

/** Returns a name that tells keys apart, and does not contain the key. */
function nameOfKey() {
  const key = headers().authorization ?? "";
  const claims = key.split(".")[1];
  try {
    const { iss, sub } = JSON.parse(atob(claims.replaceAll("-", "+").replaceAll("_", "/")));
    if (sub) return `${iss} ${sub}`;
  } catch {
    // It is no JWT.
  }
  return [...key].reduce((hash, char) => Math.imul(hash ^ char.codePointAt(0), 0x01000193) >>> 0, 0x811c9dc5);
}

/** Shows what became of a question that an earlier page has left. */
async function takeSent(sent) {
  const isOwn = [...chat.turns.values()].some(({ key }) => key && key === sent?.key);
  // The page shows its own questions itself, also if the outbox, which has just been opened, has sent one before it.
  if (sent?.turn && isOwn) return;
  if (sent?.turn) {
    // Another tab may have read the chat before this turn was in it, and not have opened its outbox yet.
    tabs.postMessage(sent.session);
    return refresh(sent.session);
  }
  if (!sent?.error) return;
  if (sent.error.status === 401) {
    await signIn(sent.error, headers());
    return outbox().retry();
  }
  const { key, body, session } = sent;
  // A refusal of its own page is shown there.
  if (!key || isOwn) return;
  notify(`The question \u201c${titleFrom(textOf(JSON.parse(body).messages)) || "Files"}\u201d was refused: ${sentence(sent.error)}`);
  if (sent.isRefused) outbox().discard(key);
  refresh(session);
}

/** Gives a new turn its place among the turns, by the id that it has now. */
function placeTurn(turn) {
  turn.drop?.();
  chat.isNew = false;
  if (chat.turns.delete("")) chat.turns.set(turn.id, turn);
  if (chat.leaf === "") chat.leaf = turn.id;
  turn.drawFoot();
  drawChat();
  readChats().catch(() => {});
  tellOtherTabs();
}

/** Takes back a question of the chat `asked` that was refused. */
function takeBack(turn, error, asked) {
  turn.drop?.();
  if (chat !== asked) return notify(`The question \u201c${titleFrom(turn.asked) || "Files"}\u201d was refused: ${sentence(error)}`);
  chat.turns.delete("");
  chat.leaf = turn.parent;
  if (!question.value && !files.length) draftAgain(turn.record.input);
  notify(sentence(error));
  mark(null);
  drawChat();
}

/** Asks `messages` after the turn `parent`. If that runs, the question waits for its end. */
async function submit(messages, parent, asked, model = chat.model) {
  notify("");
  const asking = chat;
  const { isNew, system } = asking;
  const isQueued = Boolean(asking.turns.get(parent)?.isRunning);
  // Without a prompt, the session's own would apply.
  const own = { ...(model && { model }), ...((system || !isNew) && { system }) };
  if (!chat.id) {
    chat.id = randomName();
    chat.title = titleFrom(asked) || "Files";
    history.pushState(null, "", `#${chat.id}`);
  }
  const now = new Date().toISOString();
  const record = { turn: "", parent, input: messages, content: [], outcome: "running", asked_at: now, cursor: "", model };
  const turn = addTurn(record);
  turn.asked = asked;
  drawChat();
  scroll.scrollTop = scroll.scrollHeight;
  speak(isQueued ? QUEUED : "The question is sent.");
  if (isNew) {
    const made = { id: chat.id, title: chat.title, ...(model && { model }), ...(system && { system_prompt: system }) };
    const create = request("/v1/sessions", { method: "POST", body: made });
    // The title is worth no refusal: the turn creates the session, too.
    await create.then(() => (asking.isNew = false), () => {});
  }
  // Another chat may have been opened by now.
  const place = isNew ? { create_session: true } : { parent, ...(isQueued && { on_busy: "queue" }) };
  const body = { messages, session: asking.id, ...place, ...own };
  const idempotencyKey = randomName();
  const kept = outbox();
  kept.keep(asking.id, JSON.stringify(body), idempotencyKey);
  Object.assign(turn, { key: idempotencyKey, drop: () => kept.discard(idempotencyKey) });
  follow(turn, (options) => ask(body, { ...options, idempotencyKey }), asking);
}

/** Callbacks for Turn. */
const acts = {
  isReadOnly: false,
  keepAtEnd,
  /** Shows another branch. `name`: that of the pressed button. The same button of the branch receives the focus. */
  choose(id, name) {
    chat.leaf = lastOf(chat.turns, id);
    drawChat();
    const { branches } = chat.turns.get(id);
    (branches.querySelector(`[aria-label="${name}"]:enabled`) ?? branches.querySelector(":enabled")).focus();
  },
  edit(turn) {
    edited = turn;
    byId("editing").hidden = false;
    question.focus();
    draftAgain(turn.record.input, () => edited === turn);
  },
  /** Copies the text of a question. */
  async copy(turn, button) {
    try {
      const blocks = lastBlocks(turn.record.input).filter(({ type }) => type === "text");
      await copyText(whole(blocks, readBlob).then((content) => textOf([{ content }])), button);
    } catch (error) {
      notify(error.message);
    }
  },
  whole: (value) => whole(value, readBlob),
  /** Whether the turn waits for the end of the one before. */
  isQueued: (turn) => Boolean(turn.isRunning && chat.turns.get(turn.parent)?.isRunning),
  /** Deletes a question that waits, with its turn, and makes it the draft again. */
  async withdraw(turn) {
    const shown = chat;
    try {
      await request(`/v1/turns/${turn.id}`, { method: "DELETE" });
    } catch (error) {
      return notify(sentence(error));
    }
    turn.stream?.close();
    if (chat !== shown) return;
    chat.turns.delete(turn.id);
    chat.leaf = turn.parent;
    if (!question.value && !files.length) draftAgain(turn.record.input);
    drawChat();
    question.focus();
    tellOtherTabs();
  },
  otherModels: (turn) => models.filter(({ id }) => id !== turn.record.model),
  /** Asks the question of a turn again, of `model` if it is given. */
  async again(turn, model) {
    const shown = chat;
    const { input, parent } = turn.record;
    try {
      const messages = await whole(input, readBlob);
      // The user may have opened another chat, which has another `parent`, or clicked twice.
      if (chat === shown && !chat.turns.has("")) await submit(messages, parent, textOf(messages), model);
    } catch (error) {
      notify(error.message);
    }
  },
  async share(turn, button) {
    const makeLink = async () => {
      const { ticket, until } = await request(`/v1/turns/${turn.id}/tickets`, { method: "POST", body: { is_shared: true, life_s: SHARED_S } });
      // The ticket gives access to the answer only, so the link contains the question.
      const asked = shorten(textOf(turn.record.input), SHARED_CHARS_MAX);
      return `${location.origin}/#${new URLSearchParams({ shared: turn.id, ticket, until, asked })}`;
    };
    try {
      if (!(await copyText(makeLink(), button))) return notify("The browser does not permit this page to copy the link.");
      const question = `the question (up to ${SHARED_CHARS_MAX} characters)`;
      notify(`A link is copied. It contains ${question}, and gives access to the answer for 24 hours, and to nothing else.`, false);
    } catch (error) {
      notify(error.message);
    }
  },
  /** Returns a URL of a picture, whose data may be a reference to a stored string. */
  async picture({ media_type, data }) {
    const shown = chat;
    const blob = blobOf({ media_type, data: await whole(data, readBlob) });
    if (chat !== shown) throw new Error("another chat was opened");
    chat.pictures.push(URL.createObjectURL(blob));
    return chat.pictures.at(-1);
  },
};

/** Returns the content of a picture. */
function blobOf({ media_type, data }) {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  return new Blob([bytes], { type: PICTURES.includes(media_type) ? media_type : "image/png" });
}

/** Returns a string that is stored beside the log. */
async function readBlob(sha256) {
  const response = await fetch(`/v1/blobs/${sha256}`, { headers: headers() });
  if (!response.ok) throw new Error("A file or a long text of this question is no longer stored. Add it again.");
  return response.text();
}

/** Returns the first `max` characters of `text`. Splits no surrogate pair: JSON with a half of one is refused. */
const cut = (text, max) => text.slice(0, max).replace(/[\ud800-\udbff]$/, "");

/** Returns `text` with at most `max` characters, the last one an ellipsis if some are missing. */
const shorten = (text, max) => (text.length > max ? `${cut(text, max - 1)}\u2026` : text);

/** Shows one shared answer: it can be read, and nothing else. */
function openShared(given) {
  acts.isReadOnly = true;
  document.body.classList.add("shared");
  for (const id of ["side", "composer", "welcome", "setup", "menu", "new-narrow", "demo", "demo-open"]) byId(id).hidden = true;
  byId("menu").before(document.querySelector(".name"));
  const until = Number(given.get("until"));
  byId("title").textContent = "A shared answer";
  const endsAt = new Date(1000 * until).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  const asked = shorten(given.get("asked") ?? "", SHARED_CHARS_MAX);
  const about = [until && `This link can be read until ${endsAt}.`, asked && "The sender of the link has added the question."];
  const life = element("p", { className: "quiet", textContent: about.filter(Boolean).join(" ") });
  const input = asked ? [{ role: "user", content: asked }] : [];
  const record = { turn: given.get("shared"), parent: null, input, content: [], outcome: "running", cursor: "" };
  const turn = addTurn(record);
  // It is shown when the first event arrives: without a valid ticket, the page shows no text of the link.
  turn.question.hidden = true;
  byId("turns").replaceChildren(life, turn.root);
  const proven = (url, init) => fetch(`${url}?ticket=${encodeURIComponent(given.get("ticket"))}`, init);
  const onState = (state) => turn.mark({ live: "live", reconnecting: "lost" }[state]);
  const take = (event) => {
    turn.question.hidden = !input.length;
    turn.take(event);
  };
  const answer = resume(record.turn, { fetch: proven, triesMax: Infinity, onEvent: take, onState });
  const end = ({ outcome, message, usage, cost_usd }) => {
    Object.assign(record, { outcome: outcome ?? "completed", error: message && { message }, usage, cost_usd });
    turn.draw();
    turn.drawFoot();
  };
  answer.done.then(end, (error) => end({ outcome: "failed", message: `${error.message}. The link may have expired.` }));
}

// The question.

byId("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const running = runningTurn();
  if (running) stop(running);
  else send();
});

/** Sends the draft. While an answer runs, the question waits for its end, or, with `steers`, ends it. */
async function send(steers = false) {
  const asked = chat;
  await attaching;
  // Without its turns, the question would not continue the chat.
  if (!(await asked.reading) && chat === asked) asked.reading = readChat();
  if (!(await asked.reading) || chat !== asked) return;
  const text = question.value.trim();
  if (!text && !files.length) return;
  // A question that the server has not accepted yet cannot be waited for, and an edited one begins a branch.
  if (runningTurn() && (edited || chat.turns.has(""))) return notify(WAIT, false);
  const blocks = files.map(({ block }) => block);
  const content = blocks.length ? [...blocks, ...(text ? [{ type: "text", text }] : [])] : text;
  const parent = edited ? edited.parent : chat.leaf;
  question.value = "";
  files = [];
  drawFiles();
  stopEditing();
  const running = steers && runningTurn();
  if (running) steer(running, content);
  else submit([{ role: "user", content }], parent, text);
}

/** Puts a message into a running answer, and shows the next one. */
async function steer(turn, message) {
  const steered = chat;
  const input = [{ role: "user", content: message }];
  speak("The message is sent.");
  try {
    const { turn: id, steered: parent } = await turn.stream.steer(message);
    if (chat !== steered) return;
    if (!chat.turns.has(id)) {
      const now = new Date().toISOString();
      const record = { turn: id, parent: parent ?? chat.leaf, input, content: [], outcome: "running", asked_at: now, cursor: "", model: turn.record.model };
      follow(addTurn(record), (options) => resume(id, options));
    }
    chat.leaf = id;
    chat.turns.get(id).asked = textOf(input);
    drawChat();
    scroll.scrollTop = scroll.scrollHeight;
    tellOtherTabs();
  } catch (error) {
    if (chat !== steered) return;
    if (!question.value && !files.length) draftAgain(input);
    notify(sentence(error));
  }
}

byId("steer").addEventListener("click", () => {
  send(true);
  question.focus();
});

async function stop(turn) {
  speak("Stopping.");
  if (byId("notice").textContent === WAIT) notify("");
  // Perhaps before its request is sent: `follow` looks then.
  turn.isStopped = true;
  await turn.stream?.cancel().catch((error) => notify(error.message));
}

/** Whether a key belongs to an input method. Safari sends the key that ends a composition after its end, with the code 229. */
const isOfInputMethod = (event) => event.isComposing || event.keyCode === 229;

question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || isOfInputMethod(event)) return;
  event.preventDefault();
  send(event.ctrlKey || event.metaKey);
});

function stopEditing() {
  if (edited) {
    question.value = "";
    files = [];
    drawFiles();
  }
  edited = null;
  byId("editing").hidden = true;
}
byId("unedit").addEventListener("click", stopEditing);

let attaching = Promise.resolve();

/** Attaches files to the question, after those that are still read. */
const attach = (given) => (attaching = attaching.then(() => readFiles(given)));

/** Makes a question the draft, with its files, if it is still wanted when all of it is read. */
function draftAgain(input, isWanted = () => true) {
  const read = async () => {
    const content = await whole(lastBlocks(input), readBlob);
    if (!isWanted()) return;
    question.value = textOf([{ content }]);
    files = content.filter(({ type }) => FILES[type]).map((block) => {
      const { type, data = "" } = block.source ?? {};
      const picture = block.type === "image" && type === "base64" && blobOf(block.source);
      return { name: block.title ?? FILES[block.type], bytes: (data.length * 3) / 4, file: picture, block };
    });
    drawFiles();
  };
  attaching = attaching.then(read).catch((error) => notify(error.message));
}

async function readFiles(given) {
  for (const file of given) {
    const isPicture = PICTURES.includes(file.type);
    const size = files.reduce((sum, one) => sum + one.bytes, file.size);
    if (!isPicture && file.type !== "application/pdf") {
      notify(`${file.name} is not a picture (PNG, JPEG, GIF, WebP) or a PDF.`);
    } else if (size > FILE_BYTES_MAX) {
      notify(`${file.name} does not fit: the files of a question have 20 MB at most.`);
    } else {
      const url = await new Promise((resolve) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.onerror = () => resolve(null);
        reader.readAsDataURL(file);
      });
      if (url === null) {
        notify(`${file.name} cannot be read. It may have been moved or deleted, or it is a folder.`);
        continue;
      }
      const source = { type: "base64", media_type: file.type, data: url.slice(url.indexOf(",") + 1) };
      files.push({ name: file.name, bytes: file.size, file: isPicture && file, block: { type: isPicture ? "image" : "document", source } });
    }
  }
  drawFiles();
}

function drawFiles() {
  const items = files.map((one) => {
    const remove = element("button", { type: "button", className: "plain", ariaLabel: `Remove ${one.name}`, textContent: "\u00d7" });
    remove.addEventListener("click", () => ((files = files.filter((other) => other !== one)), drawFiles()));
    const picture = one.file ? [element("img", { src: URL.createObjectURL(one.file), alt: "" })] : [];
    // The URL keeps the file in memory.
    for (const image of picture) image.onload = image.onerror = () => URL.revokeObjectURL(image.src);
    return element("li", {}, ...picture, element("span", { textContent: one.name, title: one.name }), remove);
  });
  byId("files").replaceChildren(...items);
}

byId("attach").addEventListener("click", () => byId("picker").click());
byId("picker").addEventListener("change", () => attach([...byId("picker").files]).then(() => (byId("picker").value = "")));
question.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData;
  // Excel and Word add a picture of the text. A browser copies a picture without text, a file manager without HTML.
  if (!files.length || (types.includes("text/plain") && types.includes("text/html"))) return;
  event.preventDefault();
  attach([...files]);
});
for (const [name, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    document.querySelector(".field").classList.toggle("dropping", isOver);
    if (name === "drop") attach([...event.dataTransfer.files]);
  });
}

// The model and the system prompt.

let models = [];

async function readModels() {
  const { data, is_simulated } = await request("/v1/models");
  models = data;
  gateway.isSimulated = is_simulated;
  byId("simulated").hidden = !is_simulated;
  for (const turn of chat.turns.values()) turn.drawFoot();
  byId("model").replaceChildren(...models.map(({ id, display_name }) => element("option", { value: id, textContent: display_name ?? id })));
  drawChat();
}
byId("setup").addEventListener("click", () => {
  const { model } = chat;
  if (model && !models.some(({ id }) => id === model)) byId("model").append(element("option", { value: model, textContent: model }));
  byId("model").value = model || models[0]?.id;
  byId("system").value = promptOf(chat);
  byId("settings").showModal();
});
byId("leave").addEventListener("click", () => byId("settings").close());

/** Returns the system prompt as text. Another client may have made it of several blocks. */
const promptOf = ({ system }) => textOf([{ content: system }]).trim();

onSubmit(byId("settings"), () => {
  const system = byId("system").value.trim();
  chat.model = byId("model").value;
  if (system !== promptOf(chat)) chat.system = system;
  drawChat();
  // The session keeps them for the next visit; each question of this page names them.
  if (chat.turns.size) change(() => request(`/v1/sessions/${encodeURIComponent(chat.id)}`, { method: "PATCH", body: { model: chat.model, system_prompt: chat.system || null } }));
});

// The list of chats.

let listsRead = 0;

/** Reads the newest chats. `isMore`: the next page instead. */
async function readChats(isMore = false) {
  const after = isMore ? nextChats : null;
  const number = isMore ? 0 : (listsRead += 1);
  const page = await request(`/v1/sessions?limit=50${after ? `&after=${encodeURIComponent(after)}` : ""}`);
  // The list has this page already, or begins anew; or a newer list was requested, whose response may have come first.
  if (isMore ? after !== nextChats : number !== listsRead) return;
  chats = isMore ? [...chats, ...page.data] : page.data;
  nextChats = page.next;
  drawChats();
}

function drawChats() {
  const wanted = wantedNow();
  const today = new Date().toDateString();
  const items = [];
  let group = "";
  const titles = chats.map(titleOf);
  const inText = found.wanted === wanted ? found.texts : new Map();
  const isNamed = (one) => titleOf(one).toLowerCase().includes(wanted);
  for (const one of [...chats.filter(isNamed), ...chats.filter((one) => !isNamed(one) && inText.has(one.id))]) {
    const at = new Date(one.created_at);
    const when = at.toDateString() === today ? at.toLocaleTimeString([], { timeStyle: "short" }) : at.toLocaleString([], { dateStyle: "short", timeStyle: "short" });
    const isTwice = titles.indexOf(titleOf(one)) !== titles.lastIndexOf(titleOf(one));
    const title = isTwice ? `${titleOf(one)} \u00b7 ${when}` : titleOf(one);
    const day = new Date(one.updated_at).toDateString() === today ? "Today" : "Earlier";
    const name = isNamed(one) ? day : "In questions and answers";
    if (name !== group) items.push(element("li", {}, element("h2", { textContent: (group = name) })));
    const shown = element("div", { className: "title" }, element("span", { dir: "auto", textContent: titleOf(one) }));
    if (isTwice) shown.append(element("time", { textContent: `\u00a0\u00b7 ${when}` }));
    const link = element("a", { href: `/#${encodeURIComponent(one.id)}`, title }, shown);
    if (!isNamed(one)) link.append(element("small", { dir: "auto", textContent: inText.get(one.id) }));
    if (one.id === chat.id) link.ariaCurrent = "page";
    const rename = small("Rename", title, () => renameChat(one));
    const remove = small("Delete", title, () => deleteChat(one, title));
    items.push(element("li", { className: `chat${one.id === chat.id ? " current" : ""}` }, link, rename, remove));
  }
  if (nextChats) {
    const more = element("button", { type: "button", className: "plain", textContent: "More chats" });
    more.addEventListener("click", () => readChats(true).catch((error) => notify(error.message)));
    items.push(element("li", {}, more));
  }
  if (wanted && found.wanted === wanted) {
    const line = found.isFailed ? "Questions and answers could not be searched." : "No chats found. Whole words are searched.";
    if (found.isFailed || !items.length) items.push(element("li", { className: "quiet", textContent: line }));
  }
  const list = byId("sessions");
  const focused = list.contains(document.activeElement) ? nameOf(document.activeElement) : null;
  list.replaceChildren(...items);
  if (focused) [...list.querySelectorAll("a, button")].find((one) => nameOf(one) === focused)?.focus();
}

/** Returns what a link or button of the list keeps when the list is drawn again, or its chat has another title. */
const nameOf = (control) => `${control.closest("li").querySelector("a")?.href} ${control.localName === "button" && control.textContent}`;

/** Returns the title of a chat; of one without, its first question. */
const titleOf = ({ title, preview, created_at }) => title || titleFrom(preview ?? "") || `Chat of ${new Date(created_at).toLocaleString()}`;

/** Returns the first line of a question as a title, which ends after a word. */
function titleFrom(text) {
  const line = text.trim().split("\n")[0];
  return line.length > TITLE_CHARS_MAX ? shorten(line, TITLE_CHARS_MAX).replace(/\s+\S*\u2026$/, "\u2026") : line;
}

function small(textContent, title, click) {
  const made = element("button", { type: "button", className: "plain act", textContent, ariaLabel: `${textContent} ${title}` });
  made.addEventListener("click", click);
  return made;
}

/** Asks in a dialog; returns the text, or null. */
function dialog(title, text, yes, value = null) {
  byId("asking-title").textContent = title;
  byId("asking-text").textContent = text;
  byId("asking-label").hidden = value === null;
  byId("asking-input").value = value ?? "";
  byId("asking-yes").textContent = yes;
  byId("asking-yes").classList.toggle("danger", value === null);
  byId("asking").returnValue = "";
  byId("asking").showModal();
  return new Promise((resolve) => {
    const close = () => resolve(byId("asking").returnValue === "yes" ? byId("asking-input").value.trim() : null);
    byId("asking").addEventListener("close", close, { once: true });
  });
}
onSubmit(byId("asking"));
byId("asking-no").addEventListener("click", () => byId("asking").close());

async function renameChat(one) {
  const title = await dialog("Rename this chat", "", "Rename", titleOf(one));
  if (title === null) return;
  const isDone = await change(() => request(`/v1/sessions/${encodeURIComponent(one.id)}`, { method: "PATCH", body: { title: title || null } }));
  if (isDone && one.id === chat.id) chat.title = title;
  drawChat();
}

async function deleteChat(one, title) {
  const text = `\u201c${title}\u201d and its ${one.turns} turns are deleted for good.`;
  if ((await dialog("Delete this chat?", text, "Delete")) === null) return;
  const isDone = await change(() => request(`/v1/sessions/${encodeURIComponent(one.id)}`, { method: "DELETE" }));
  if (isDone && one.id === chat.id) location.hash = "";
}

/** Returns whether `work` succeeded, after the list was read again. Shows why it failed. */
async function change(work) {
  try {
    await work();
  } catch (error) {
    notify(error.message);
    return false;
  }
  await readChats().catch((error) => notify(error.message));
  tellOtherTabs();
  return true;
}

/** The result of the last search of texts: `texts` has an excerpt by chat id, for each chat that contains `wanted`. */
let found = { wanted: "", texts: new Map() };
let typing = 0;

// Titles are searched at each keystroke, texts when the user stops typing.
byId("search").addEventListener("input", () => {
  clearTimeout(typing);
  const wanted = wantedNow();
  const fail = () => {
    found = { wanted, texts: new Map(), isFailed: true };
    drawChats();
  };
  typing = setTimeout(() => searchTexts().catch(fail), TYPING_MS);
  drawChats();
  readAllChats().catch((error) => notify(error.message));
});

let isReadingAll = false;

/** Reads the rest of the list, while there is something to search: the API searches no titles. */
async function readAllChats() {
  if (isReadingAll) return;
  isReadingAll = true;
  try {
    while (nextChats && byId("search").value) await readChats(true);
  } finally {
    isReadingAll = false;
  }
}

const wantedNow = () => byId("search").value.trim().toLowerCase();

/** Searches the texts of ended turns. If the request fails, the list shows the matching titles only. */
async function searchTexts() {
  const wanted = wantedNow();
  if (!wanted) return;
  const turns = [];
  // A page may have fewer turns than its limit, or none, although there are more.
  for (let pages = 0, next = ""; next !== null && turns.length < FOUND_MAX && pages < PAGES_MAX; pages++) {
    const page = await request(`/v1/turns?${new URLSearchParams({ q: wanted, limit: FOUND_MAX, ...(next && { after: next }) })}`);
    // Another search has begun.
    if (wanted !== wantedNow()) return;
    turns.push(...page.data);
    ({ next } = page);
  }
  const parts = turns.map(({ session, input, text }) => [session, excerptOf([textOf(input), text], wanted.split(/\s+/)[0])]);
  // The newest turn of each chat comes first.
  found = { wanted, texts: new Map(parts.reverse()) };
  drawChats();
}

/** Returns an excerpt of the first text that contains `word`, or of the first text. It begins and ends between words. */
function excerptOf(texts, word) {
  // Without the lines of tables.
  const text = (texts.find((one) => one.toLowerCase().includes(word)) ?? texts[0]).replace(/[\s|]+(:?-{3,}:?[\s|]+)*/g, " ");
  const at = Math.max(0, text.toLowerCase().indexOf(word));
  const start = at < FOUND_CHARS / 4 ? 0 : text.lastIndexOf(" ", at - FOUND_CHARS / 4) + 1;
  const space = text.lastIndexOf(" ", start + FOUND_CHARS);
  const end = text.length <= start + FOUND_CHARS ? text.length : space > at ? space : start + FOUND_CHARS;
  return `${start ? "\u2026" : ""}${text.slice(start, end)}${end < text.length ? "\u2026" : ""}`;
}

// Other tabs, keys, and the drawer of a narrow window.

const tabs = findTabs();
const tellOtherTabs = () => tabs.postMessage(chat.id);
tabs.onmessage = ({ data }) => refresh(data);

/** Returns the channel to the other tabs. Firefox permits none where it blocks the storage: they show changes after a reload. */
function findTabs() {
  try {
    return new BroadcastChannel("tailrace");
  } catch {
    return { postMessage() {} };
  }
}

/** Reads the list again, and the turns of the chat `id` if it is shown. A shared answer is read without a key. */
function refresh(id) {
  if (acts.isReadOnly) return;
  readChats().catch(() => {});
  if (id && id === chat.id) readTurns().catch(({ status }) => id === chat.id && status === 404 && notify(GONE));
}

function drawer(isOpen) {
  document.body.classList.toggle("open", isOpen);
  byId("shade").hidden = !isOpen;
  byId("menu").ariaExpanded = String(isOpen);
}
byId("menu").addEventListener("click", () => drawer(true));
byId("shade").addEventListener("click", () => drawer(false));
for (const id of ["new", "new-narrow"]) {
  byId(id).addEventListener("click", () => {
    if (location.hash) location.hash = "";
    else question.focus();
    drawer(false);
  });
}
document.addEventListener("keydown", (event) => {
  if (acts.isReadOnly || isOfInputMethod(event)) return;
  const isCommand = event.ctrlKey || event.metaKey;
  if (event.key === "Escape") onEscape();
  if (isCommand && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    byId("new").click();
  }
  if (isCommand && event.key.toLowerCase() === "k") {
    event.preventDefault();
    // A wide window has no drawer.
    if (byId("menu").offsetParent) drawer(true);
    byId("search").focus();
  }
});
/** Closes the drawer, or ends editing, or leaves a filled search field as it is; else stops the running answer. */
function onEscape() {
  if (document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("open")) return drawer(false);
  if (edited) return stopEditing();
  if (document.activeElement === byId("search") && byId("search").value) return;
  const notice = byId("notice");
  if (!notice.hidden && !notice.classList.contains("bad") && notice.textContent !== WAIT) return notify("");
  const running = runningTurn();
  if (running) stop(running);
}
// What the browser keeps for the key goes with it.
let isForgotten = false;
const forget = async (event) => {
  if (isForgotten) return;
  event.stopImmediatePropagation();
  await outbox().forget();
  isForgotten = true;
  byId("forget").click();
};
byId("forget").addEventListener("click", forget, { capture: true });
addEventListener("hashchange", () => {
  drawer(false);
  open();
});

function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

for (const example of EXAMPLES) {
  const button = element("button", { type: "button", textContent: example });
  button.addEventListener("click", () => submit([{ role: "user", content: example }], null, example));
  byId("examples").append(button);
}
// The demo: it begins at the address that `tailrace up` prints, or with its button.

const DEMO = "tailrace-demo";

/** Moves the token of the demo from the address, where a copied link would contain it, to this tab. */
function takeDemoToken() {
  if (!location.hash.startsWith("#demo=")) return;
  storage.setItem(DEMO, location.hash.slice("#demo=".length));
  history.replaceState(null, "", "/");
  startDemo();
}

async function startDemo() {
  const { Demo } = await import("./demo.js");
  if (!watcher.demo) {
    const ask = () => submit([{ role: "user", content: EXAMPLES.at(-1) }], chat.leaf, EXAMPLES.at(-1));
    // A connection that is lost says so itself, and what came after it when it is back.
    const remark = () => byId("mark").textContent !== "reconnecting" && mark(isBusy() ? "live" : null);
    watcher.demo = new Demo(watcher, DEMO, ask, remark);
    const running = runningTurn();
    drawSend();
    // The demo can cut only a connection that was opened through it.
    if (running?.id) running.stream.close();
    if (running?.id) follow(running, (options) => resume(running.id, options));
  }
  watcher.demo.show(true);
}
byId("demo-open").addEventListener("click", startDemo);

open();
if (!acts.isReadOnly) {
  if (storage.getItem(`${DEMO}-open`)) startDemo();
  const read = persist(readChats).then(() => (byId("demo-open").hidden = !gateway.process || !byId("demo").hidden));
  read.then(outbox, (error) => notify(error.message));
  persist(readModels).catch(() => {});
  checkModel();
}
