// Runs in a page: the browser's own EventSource, and fetch-event-source, which needs a `window`.
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { fetchText, listen, Tailrace } from "./shown.mjs";

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
    // It takes a clean end for the end of everything, unless somebody objects.
    onclose() {
      throw new Error("closed before the end");
    },
    onerror(error) {
      if (error.isFinal) throw error;
    },
  });
  return { text: shown.text, outcome: shown.outcome, opened };
}

globalThis.CLIENTS = {
  EventSource: (url) => listen(new EventSource(url), url),
  "fetch-event-source": fetched,
  fetch: (url) => fetchText(url, {}),
};
