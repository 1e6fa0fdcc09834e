// The readers in JavaScript of benchmarks/gateway_kills.py: `gateway_kills.mjs URL TURN COUNT`. Prints a line for each
// pause in which a reader has lost its connection: the reader's kind, and how long no delta came, in milliseconds.
import { resume } from "../web/tailrace.js";

const [url, turn, count] = process.argv.slice(2);

function watch(kind) {
  let last = performance.now();
  let isCut = false;
  return {
    cut: () => (isCut = true),
    delta() {
      const now = performance.now();
      if (isCut) console.log(`${kind} ${Math.round(now - last)}`);
      [last, isCut] = [now, false];
    },
  };
}

for (let number = 0; number < Number(count); number++) {
  const answer = watch("tailrace.js");
  const onEvent = ({ type }) => type === "delta" && answer.delta();
  resume(turn, { url, triesMax: Infinity, onEvent, onState: (state) => state === "live" || answer.cut() });
  const page = watch("EventSource");
  const source = new EventSource(`${url}/v1/turns/${turn}/events`);
  source.addEventListener("error", page.cut);
  source.addEventListener("message", ({ data }) => JSON.parse(data).type === "delta" && page.delta());
}
