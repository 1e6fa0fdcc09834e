// POSTs a question with a client of post-clients.mjs in Node: `posts.mjs CLIENT URL HEADERS BODY DIALECT`.
import { POST_CLIENTS } from "./post-clients.mjs";

// fetch-event-source is made for pages. Node has all that it uses of a page but these names.
globalThis.window = globalThis;
globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };

const [client, url, headers, body, dialect] = process.argv.slice(2);
console.log(JSON.stringify(await POST_CLIENTS[client](url, JSON.parse(headers), body, dialect)));
