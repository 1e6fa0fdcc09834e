// Runs in a page: the browser's own EventSource, and fetch-event-source, which needs a `window`.
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { SSE } from "sse.js";
import { POST_CLIENTS } from "./post-clients.mjs";
import { fetchText, listen, shownIn, Tailrace } from "./shown.mjs";

async function fetched(url) {
  const shown = new Tailrace();
  const leaving = new AbortController();
  let opened = 0;
  await fetchEventSource(url, {
    signal: leaving.signal,
    openWhenHidden: true,
    async onopen(response) {
      if (!response.ok) throw Object.assign(new Error(`status ${response.status}`), { isFinal: true });
      opened += 1;
    },
    onmessage: ({ data }) => shown.take(data) && leaving.abort(),
    // It treats a clean end as the end of everything, unless this function throws.
    onclose() {
      throw new Error("closed before the end");
    },
    onerror(error) {
      if (error.isFinal) throw error;
    },
  });
  return { text: shown.text, outcome: shown.outcome, opened };
}

/** A POST with sse.js, which repeats it after each end of the connection until it is closed. */
const withSSE = (url, headers, payload, dialect) =>
  new Promise((resolve, reject) => {
    const shown = shownIn(dialect);
    let turn = null;
    // It sends no Accept of its own, by which POST /v1/turns decides.
    const accepting = { Accept: "text/event-stream", ...headers };
    const source = new SSE(url, { headers: accepting, payload, autoReconnect: true, reconnectDelay: 100 });
    source.addEventListener("open", ({ responseCode, headers }) => {
      if (responseCode !== 200) reject(new Error(`status ${responseCode}`));
      turn = headers["tailrace-turn"]?.[0];
    });
    source.addEventListener("message", ({ data }) => {
      if (!shown.take(data)) return;
      source.close();
      resolve({ turn, text: shown.text, outcome: shown.outcome });
    });
  });

globalThis.POST_CLIENTS = { ...POST_CLIENTS, "sse.js": withSSE };
globalThis.CLIENTS = {
  EventSource: (url) => listen(new EventSource(url), url),
  "fetch-event-source": fetched,
  fetch: (url) => fetchText(url, {}),
};
