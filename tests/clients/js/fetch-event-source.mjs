// A POST with @microsoft/fetch-event-source as its documentation has it: it repeats the POST after a cut.
import { fetchEventSource } from "@microsoft/fetch-event-source";
import { shownIn } from "./shown.mjs";

export async function post(url, headers, body, dialect) {
  const shown = shownIn(dialect);
  let [opened, turn] = [0, null];
  await fetchEventSource(url, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers },
    body,
    async onopen(response) {
      if (!response.ok) throw Object.assign(new Error(await response.text()), { isFinal: true });
      [opened, turn] = [opened + 1, response.headers.get("tailrace-turn")];
    },
    onmessage: ({ data }) => shown.take(data),
    onerror(error) {
      if (error.isFinal) throw error;
    },
  });
  return { turn, text: shown.text, outcome: shown.outcome, opened };
}
