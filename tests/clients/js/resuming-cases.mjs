// `resumableFetch` over a `fetch` of the test: keys, gateways, cuts and refusals. Prints a JSON line for each case.
import OpenAI from "openai";
import { resumableFetch } from "../../../web/fetch.js";

const [A, B] = ["http://a:1", "http://b:2/app"];
const START = 'event: message_start\ndata: {"type":"message_start"}\nid: 4\n\n';
const STOP = 'event: message_delta\ndata: {}\n\nevent: message_stop\ndata: {"type":"message_stop"}\nid: 99\n\n';
const delta = (n) => `event: content_block_delta\ndata: {"n":${n}}\nid: ${n}\n\n`;
const REFUSED = new TypeError("refused");
// No wait between two tries takes place.
const later = globalThis.setTimeout;
globalThis.setTimeout = (done, ms, ...given) => later(done, ms > 20_000 ? ms : 0, ...given);

/** A response whose body ends with an error if `error` is given. */
function stream(parts, error, headers = {}) {
  const left = [...parts];
  const pull = (controller) => {
    if (left.length) controller.enqueue(new TextEncoder().encode(left.shift()));
    else if (error) controller.error(error);
    else controller.close();
  };
  return new Response(new ReadableStream({ pull }), { headers: { "content-type": "text/event-stream", "tailrace-turn": "t1", ...headers } });
}
const cut = (...parts) => stream(parts, new TypeError("cut"));
const whole = (...parts) => stream(parts);

/** Returns a `fetch` that answers each request with the next response, and the requests. */
function server(...answers) {
  const requests = [];
  const fetch = async (url, init = {}) => {
    requests.push({ url: `${init.method ?? "GET"} ${url}`, key: new Headers(init.headers).get("idempotency-key"), body: init.body });
    const answer = answers.shift();
    if (answer instanceof Error) throw answer;
    return answer;
  };
  return { fetch, requests };
}

const body = JSON.stringify({ model: "m", stream: true, messages: [] });
async function post({ fetch }, { gateways = [], path = "/v1/messages", init = {} } = {}) {
  const headers = { "content-type": "application/json", "x-api-key": "k" };
  try {
    const response = await resumableFetch({ fetch, gateways })(A + path, { method: "POST", headers, body, ...init });
    return await response.text();
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
}

const CASES = {
  async "goes on"() {
    const gateway = server(cut(START, ": hb\n\n", delta(5), delta(6).slice(0, -1)), REFUSED, cut(STOP.slice(0, 30)), whole(delta(6), STOP));
    const text = await post(gateway, { gateways: [`${B}/v1/`] });
    return { isWhole: text === `${START}: hb\n\n${delta(5)}${delta(6)}${STOP}`, urls: gateway.requests.map(({ url }) => url) };
  },
  async "50 cuts with an event"() {
    const numbers = Array.from({ length: 49 }, (_, n) => n + 5);
    const text = await post(server(cut(START), ...numbers.map((n) => cut(delta(n))), whole(STOP)));
    return { isWhole: text === START + numbers.map(delta).join("") + STOP };
  },
  async "50 cuts without an event"() {
    const gateway = server(cut(START), ...Array.from({ length: 50 }, () => cut(": hb\n\n")));
    return { text: await post(gateway), requests: gateway.requests.length };
  },
  async "revoked key"() {
    const gateway = server(cut(START), new Response(null, { status: 401 }), new Response(null, { status: 401 }));
    return { text: await post(gateway, { gateways: [B] }), requests: gateway.requests.length };
  },
  restart: async () => ({ text: await post(server(cut(START, delta(5)), whole(START, STOP))) }),
  "clean end": async () => ({ isWhole: (await post(server(whole(START), whole(STOP)))) === START + STOP }),
  async "iterator body"() {
    const iterator = new ReadableStream({ start: (controller) => (controller.enqueue(new TextEncoder().encode(body)), controller.close()) });
    const gateway = server(cut(START));
    return { text: await post(gateway, { init: { body: iterator, duplex: "half" } }), requests: gateway.requests.length, key: gateway.requests[0].key };
  },
  async "not streamed"() {
    const gateway = server(new Response("{}"));
    return { text: await post(gateway, { init: { body: "{}" } }), key: gateway.requests[0].key };
  },
  async "not Tailrace"() {
    const foreign = new Response(stream(["data: ha"], new TypeError("cut")).body, { headers: { "content-type": "text/event-stream" } });
    const gateway = server(foreign);
    return { text: await post(gateway), requests: gateway.requests.length };
  },
  async "keys of repetitions"() {
    const gateway = server(whole("data: [DONE]\n\n"), new TypeError("lost"), new TypeError("lost"), new TypeError("lost"), new TypeError("lost"),
      new Response(null, { status: 500 }), whole("data: [DONE]\n\n"));
    const client = new OpenAI({ baseURL: `${A}/v1`, apiKey: "k", fetch: resumableFetch({ fetch: gateway.fetch }) });
    for (let n = 0; n < 2; n++) for await (const _ of await client.chat.completions.create({ model: "m", messages: [], stream: true }));
    const keys = gateway.requests.map(({ key }) => key);
    return { requests: keys.length, keysOfSecond: new Set(keys.slice(1)).size, isNew: keys[0] !== keys[1] };
  },
  async "stopped by the app"() {
    const leaving = new AbortController();
    const gateway = server(stream([START], null), whole(STOP));
    const response = await resumableFetch({ fetch: gateway.fetch })(`${A}/v1/messages`, { method: "POST", body, signal: leaving.signal });
    const reader = response.body.getReader();
    await reader.read();
    leaving.abort();
    return { error: await reader.read().then(({ done }) => `done: ${done}`, (error) => error.name) };
  },
};

for (const [name, run] of Object.entries(CASES)) console.log(JSON.stringify({ case: name, ...(await run()) }));
