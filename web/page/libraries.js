// What the page at `/` uses, as one file: `npm run build` writes features/page/libraries.js.
export { default as DOMPurify } from "dompurify";
export { default as hljs } from "highlight.js/lib/common";
export { Marked } from "marked";
export { outboxOf } from "../outbox.js";
export { branchTo, childrenOf, lastOf, whole } from "../session.js";
export { ask, resume } from "../tailrace.js";
