// Clients that POST a question and read the answer from the response, each until the turn has ended. For Node and pages.
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { ask } from "../../../web/tailrace.js";
import { shownIn } from "./shown.mjs";

/** @microsoft/fetch-event-source as its documentation has it: it repeats the POST after a cut. */
async function withFetchEventSource(url, headers, body, dialect) {
  const shown = shownIn(dialect);
  let turn = null;
  await fetchEventSource(url, {
    method: "POST",
    headers,
    body,
    async onopen(response) {
      if (!response.ok) throw Object.assign(new Error(await response.text()), { isFinal: true });
      turn = response.headers.get("tailrace-turn");
    },
    onmessage: ({ data }) => shown.take(data),
    onerror(error) {
      if (error.isFinal) throw error;
    },
  });
  return { turn, text: shown.text, outcome: shown.outcome };
}

/** The loop of the tutorials, in a function that repeats the POST after a cut, with the last cursor (docs/API.md). */
async function withLoop(url, headers, body, dialect) {
  const shown = shownIn(dialect);
  let [cursor, turn] = [null, null];
  for (;;) {
    const response = await fetch(cursor === null ? url : `${url}?after=${cursor}`, { method: "POST", headers, body });
    if (!response.ok) throw new Error(await response.text());
    turn = response.headers.get("tailrace-turn");
    try {
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      let buffer = "";
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return { turn, text: shown.text, outcome: shown.outcome ?? "completed" };
        buffer += decoder.decode(value, { stream: true });
        const lines = buffer.split("\n\n");
        buffer = lines.pop();
        for (const line of lines) {
          if (!line.startsWith("data: ")) continue;
          const data = JSON.parse(line.slice(6));
          shown.take(line.slice(6));
          cursor = data.cursor ?? cursor;
        }
      }
    } catch (error) {
      if (error instanceof SyntaxError) throw error;
    }
  }
}

/** web/tailrace.js. Its iterator and its callbacks must agree. */
async function withTailrace(url, { authorization }, body) {
  let [shown, received] = ["", ""];
  const states = [];
  const answer = ask(JSON.parse(body), {
    url: new URL(url).origin,
    headers: { authorization },
    onText: (text) => (received = text),
    onState: (state) => states.push(state),
  });
  const cursors = new Set();
  let events = 0;
  for await (const event of answer) {
    events += 1;
    cursors.add(event.cursor);
    if (event.type === "delta") shown += event.text;
  }
  const { turn, text, outcome } = await answer.done;
  const isAgreed = shown === text && received === text && events === cursors.size && states.at(-1) === "ended";
  return { turn, text: isAgreed ? text : { shown, received, text, events, cursors: cursors.size, states }, outcome };
}

export const POST_CLIENTS = { "fetch-event-source": withFetchEventSource, loop: withLoop, "tailrace.js": withTailrace };
