// Reads turns with Node's clients, all at once: `readers.mjs KEY CLIENT URL [CLIENT URL ...]`. One line for each, in order.
import { EventSource } from "eventsource";
import { fetchText, listen } from "./shown.mjs";

const [key, ...rest] = process.argv.slice(2);
const headers = { authorization: `Bearer ${key}` };
const withKey = (url, init) => fetch(url, { ...init, headers: { ...init.headers, ...headers } });

const CLIENTS = {
  EventSource: (url) => listen(new EventSource(url, { fetch: withKey }), url),
  // It sends its cursor as ?lastEventId=, and no Last-Event-ID.
  EventSourcePolyfill: async (url) => {
    const { EventSourcePolyfill } = await import("event-source-polyfill");
    return listen(new EventSourcePolyfill(url, { headers }), url);
  },
  fetch: (url) => fetchText(url, headers),
};

// Node ends when nothing is left to wait for, and EventSource's wait before it comes back does not count.
const staying = setInterval(() => {}, 1000);
const cases = [];
for (let n = 0; n < rest.length; n += 2) cases.push(CLIENTS[rest[n]](rest[n + 1]));
for (const shown of await Promise.all(cases)) console.log(JSON.stringify(shown));
clearInterval(staying);
