// What a client makes of the events of a turn, one accumulator a dialect. It opens no connection.

/** `tailrace`: deltas add up, a reset forgets them, and `done` or `error` is the end. */
export class Tailrace {
  text = "";
  outcome = null;

  take(data) {
    const event = JSON.parse(data);
    if (event.type === "delta") this.text += event.text;
    if (event.type === "reset") this.text = "";
    if (event.type === "done") this.outcome = event.outcome;
    if (event.type === "error") this.outcome = "failed";
    return this.outcome !== null;
  }
}

/** `anthropic`: the text of Anthropic's own events. */
export class Anthropic {
  text = "";
  outcome = null;

  take(data) {
    const event = JSON.parse(data);
    if (event.type === "content_block_delta" && event.delta.type === "text_delta") this.text += event.delta.text;
    if (event.type === "message_stop") this.outcome = "completed";
    if (event.type === "error") this.outcome = "failed";
    return this.outcome !== null;
  }
}

/** `delta`: the tutorials' own events. */
export class Delta extends Tailrace {
  take(data) {
    const isEnd = super.take(data);
    if (this.outcome === undefined) this.outcome = "completed"; // `done` says no more
    return isEnd;
  }
}

/** `content`: text only; the body's end is the answer's. */
export class Content extends Tailrace {
  take(data) {
    this.text += JSON.parse(data).content;
    return false;
  }
}

/** `state`, and the unnamed events of `job`: each is everything so far (`useSSE`). */
export class State extends Tailrace {
  take(data) {
    const { status, text } = JSON.parse(data);
    this.text = text;
    if (!["queued", "running"].includes(status)) this.outcome = status;
    return this.outcome !== null;
  }
}

/** An accumulator for the events of a dialect. */
export const shownIn = (dialect) => new { tailrace: Tailrace, anthropic: Anthropic, delta: Delta, content: Content, state: State, job: State }[dialect]();

/** The names of its events: an event without a listener for its name is not received. */
const NAMED = ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "message_stop", "error"];

/** An EventSource, whosever it is, until the turn has ended; `opened` counts how often it had to connect. */
export function listen(source, url) {
  const dialect = new URL(url).searchParams.get("dialect") ?? "tailrace";
  const isAnthropic = dialect === "anthropic";
  const shown = shownIn(dialect);
  return new Promise((resolve, reject) => {
    let opened = 0;
    source.addEventListener("open", () => (opened += 1));
    source.addEventListener("error", (event) => {
      if (source.readyState === source.CLOSED) reject(new Error(`it gave up: ${event.message ?? event.type}`));
    });
    const take = ({ data }) => {
      // The name "error" is also that of a lost connection, which has no data.
      if (data === undefined || !shown.take(data)) return;
      source.close();
      resolve({ text: shown.text, outcome: shown.outcome, opened });
    };
    for (const name of isAnthropic ? NAMED : ["message"]) source.addEventListener(name, take);
  });
}

/** The tutorials' loop: fetch, read to the end, and ask again when the body breaks. */
export async function fetchText(url, headers) {
  for (let opened = 1; ; opened += 1) {
    let text = "";
    try {
      const response = await fetch(url, { headers });
      if (!response.ok) throw Object.assign(new Error(`status ${response.status}`), { isFinal: true });
      const decoder = new TextDecoder();
      for (const reader = response.body.getReader(); ; ) {
        const { done, value } = await reader.read();
        if (done) return { text: text + decoder.decode(), outcome: "completed", opened };
        text += decoder.decode(value, { stream: true });
      }
    } catch (error) {
      if (error.isFinal) throw error;
    }
  }
}
