// Markdown as elements. Markup in the text is shown as text; pictures are links, so that an answer loads nothing.
import { element } from "./dom.js";
import { DOMPurify, hljs, Marked } from "./libraries.js";

// Longer texts are shown without Markdown: a page must not stand still over a line of 1 MB.
const CHARS_MAX = 200_000;
// Longer code, and code with a longer line, has no colours: the time for some lines grows with the cube of their length.
const CODE_CHARS_MAX = 20_000;
const LONG_LINE = /^.{500}/m;
// A longer paragraph is shown as it is until it ends: to parse it again for each delta would take too long.
const GROWING_CHARS_MAX = 2000;
// A longer paragraph is shown as it is: the time for some grows with the square of their length.
const INLINE_CHARS_MAX = 5000;
// Quotes and lists inside of each other, on one line. The parser calls itself for each, up to the end of the call stack.
const TOO_DEEP = /^(?:[ \t]*(?:>|(?:[-*+]|\d{1,9}[.)])[ \t])){40}/m;
const NOTHING = { text: "", count: 0 };
const ALLOWED = {
  ALLOWED_TAGS: [
    ...["p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "li", "strong", "em", "del", "code", "pre", "blockquote", "a"],
    ...["table", "thead", "tbody", "tr", "th", "td", "br", "hr"],
  ],
  ALLOWED_ATTR: ["href", "title", "start", "class"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};
const MATH = { USE_PROFILES: { mathMl: true }, ADD_TAGS: ["semantics", "annotation"], ALLOW_DATA_ATTR: false, ALLOW_ARIA_ATTR: false, RETURN_DOM_FRAGMENT: true };
// TeX in $, $$, \( or \[, without an empty line. As in Pandoc, no space follows the first $ or precedes the last one, and no
// digit follows it: $5 is a price.
const DISPLAYED = /^(?:\$\$((?:(?!\n\s*\n)[^]){1,2000}?)\$\$|\\\[((?:(?!\n\s*\n)[^]){1,2000}?)\\\])/;
const INLINE = /^(?:\$(?![\s$])((?:\\.|[^\\$\n]){1,1000}?)(?<!\s)\$(?!\d)|\\\(((?:(?!\n\s*\n)[^]){1,1000}?)\\\))/;
const REST_OF_LINE = /^[ \t]*(?:\n|$)/;
const COLOURED = { ...ALLOWED, ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] };

const escapeMarkup = (text) => text.replace(/[&<>"']/g, (one) => `&#${one.charCodeAt(0)};`);

/** Returns the token of a formula at the beginning of `src`, which no Markdown changes. */
function formulaOf(src) {
  const display = DISPLAYED.exec(src);
  const found = display ?? INLINE.exec(src);
  return found ? { type: "math", raw: found[0], tex: found[1] ?? found[2], isDisplayed: Boolean(display) } : undefined;
}

/** Returns the token of a formula that is a paragraph of its own. Its lines are no lists or headings. */
function displayedOf(src) {
  const token = DISPLAYED.test(src) ? formulaOf(src) : undefined;
  return token && REST_OF_LINE.test(src.slice(token.raw.length)) ? { ...token, type: "displayed" } : undefined;
}
const formula = ({ raw, isDisplayed }) => `<code class="math${isDisplayed ? " displayed" : ""}">${escapeMarkup(raw)}</code>`;

const marked = new Marked({
  renderer: {
    html: ({ text, block }) => (block ? `<p>${escapeMarkup(text)}</p>` : escapeMarkup(text)),
    image: ({ href, text }) => `<a href="${escapeMarkup(href)}">${escapeMarkup(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "\u2611 " : "\u2610 "),
  },
  extensions: [
    { name: "displayed", level: "block", tokenizer: displayedOf, renderer: (token) => `<p>${formula(token)}</p>` },
    { name: "math", level: "inline", start: (src) => src.match(/\$|\\[([]/)?.index, tokenizer: formulaOf, renderer: formula },
    { name: "long", level: "inline", tokenizer: (src) => (src.length > INLINE_CHARS_MAX ? { type: "text", raw: src, text: src } : undefined) },
  ],
});

/** The text of an answer in `root`, drawn again as it grows: only its changed blocks. */
export class Markdown {
  #blocks = [];
  /** The beginning of the text that no later text changes, and how many blocks it has. */
  #stable = NOTHING;

  constructor(root) {
    this.root = root;
  }

  /** `isOpen`: more text may follow. */
  draw(text, isOpen) {
    if (text.length > CHARS_MAX || TOO_DEEP.test(text)) {
      [this.#blocks, this.#stable] = [[], NOTHING];
      return this.root.replaceChildren(element("p", { className: "plainly", dir: "auto", textContent: text }));
    }
    // While the answer grows, only its last blocks can change. At its end, later definitions of links count for all.
    const stable = isOpen && text.startsWith(this.#stable.text) ? this.#stable : NOTHING;
    const tokens = marked.lexer(text.slice(stable.text.length));
    const shown = tokens.filter(isShown);
    shown.forEach((token, at) => {
      const index = stable.count + at;
      const isGrowing = isOpen && at === shown.length - 1;
      const key = `${isGrowing}${token.raw}`;
      const before = this.#blocks[index];
      if (before?.key === key) return;
      const isPlain = isGrowing && token.type !== "code" && token.raw.length > GROWING_CHARS_MAX;
      if (isPlain && before?.plain && token.raw.startsWith(before.plain.data)) {
        before.plain.appendData(token.raw.slice(before.plain.data.length));
        return (before.key = key);
      }
      const plain = isPlain ? new Text(token.raw) : null;
      const inside = plain ? [element("p", { className: "plainly", dir: "auto" }, plain)] : elementsOf(token, tokens.links, isGrowing);
      const block = element("div", { className: "block" }, ...inside);
      if (before) before.block.replaceWith(block);
      else this.root.append(block);
      this.#blocks[index] = { key, block, plain };
    });
    for (const { block } of this.#blocks.splice(stable.count + shown.length)) block.remove();
    const kept = tokens.slice(0, -2);
    const prefix = stable.text + kept.map(({ raw }) => raw).join("");
    // The lexer changes some characters, such as a carriage return: then all of the text is read again.
    const isSame = isOpen && text.startsWith(prefix);
    this.#stable = isSame ? { text: prefix, count: stable.count + kept.filter(isShown).length } : NOTHING;
  }
}

const isShown = ({ type }) => type !== "space" && type !== "def";

function elementsOf(token, links, isGrowing) {
  const fragment = DOMPurify.sanitize(marked.parser(Object.assign([token], { links })), ALLOWED);
  for (const block of fragment.children) block.dir = "auto";
  for (const link of fragment.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer" });
  // A keyboard can scroll them.
  for (const table of fragment.querySelectorAll("table")) table.tabIndex = 0;
  for (const code of fragment.querySelectorAll("pre > code")) code.parentElement.replaceWith(frame(code, isGrowing));
  for (const source of fragment.querySelectorAll("code.math")) drawFormula(source);
  return [...fragment.childNodes];
}

let math = null;

/** Replaces TeX by the formula, when the library for it is loaded. What is no TeX stays as it was written. */
async function drawFormula(source) {
  const { tex, isDisplayed } = formulaOf(source.textContent);
  try {
    const { renderToString } = await (math ??= import("./math.js"));
    const markup = renderToString(tex, { output: "mathml", displayMode: isDisplayed, strict: "ignore", maxSize: 20, maxExpand: 500 });
    const fragment = DOMPurify.sanitize(markup, MATH);
    // It repeats the source.
    fragment.querySelector("annotation").remove();
    source.replaceWith(fragment);
  } catch {
    // The file can be missing during an update of the gateway.
    math = null;
  }
}

/** Returns the frame of a code block: its language, a button that copies it, and the code. */
function frame(code, isGrowing) {
  const text = code.textContent.replace(/\n$/, "");
  const language = /^language-(\S+)$/.exec(code.className)?.[1] ?? "";
  const copy = element("button", { type: "button", className: "plain", textContent: "Copy" });
  copy.addEventListener("click", () => copyText(text, copy));
  const shown = element("code", { textContent: text });
  if (!isGrowing && text.length <= CODE_CHARS_MAX && !LONG_LINE.test(text) && hljs.getLanguage(language)) {
    shown.replaceChildren(DOMPurify.sanitize(hljs.highlight(text, { language, ignoreIllegals: true }).value, COLOURED));
  }
  const pre = element("pre", { tabIndex: 0 }, shown);
  return element("div", { className: "code" }, element("div", { className: "head" }, element("span", { textContent: language || "text" }), copy), pre);
}

const [COPIED, NOT_COPIED] = ["Copied", "Not copied"];

/** Copies `text`, and says on `button` whether that succeeded. Returns whether it did. Safari permits no copy after a click's
 * handler has waited for a response: for a text that is still requested, pass the promise of it. */
export async function copyText(text, button) {
  const isCopied = (await copyToClipboard(text).then(() => true, () => false)) || copyByCommand(await text);
  const before = button.textContent;
  button.textContent = isCopied ? COPIED : NOT_COPIED;
  // A second click finds the words of the first one.
  if (![COPIED, NOT_COPIED].includes(before)) setTimeout(() => (button.textContent = before), 1500);
  return isCopied;
}

async function copyToClipboard(text) {
  const type = "text/plain";
  const blob = async () => new Blob([await text], { type });
  await navigator.clipboard.write([new ClipboardItem({ [type]: blob() })]);
}

/** Pages without TLS have no `navigator.clipboard`. Returns whether the browser has copied `text`. */
function copyByCommand(text) {
  const area = element("textarea", { value: text, className: "unseen" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused.focus();
  return isCopied;
}
