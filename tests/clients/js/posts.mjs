// POSTs with @microsoft/fetch-event-source until the turn has ended: `posts.mjs URL HEADERS BODY DIALECT`.
import { post } from "./fetch-event-source.mjs";

// It is made for pages. Node has all that it uses of a page but these names.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

const [url, headers, body, dialect] = process.argv.slice(2);
console.log(JSON.stringify(await post(url, JSON.parse(headers), body, dialect)));
