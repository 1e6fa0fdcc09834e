// Runs in a page: the readers of web/ and an EventSource, each begun by `begin(key, reader, turns)`; `ask(key, reader, text)` asks.
// `shown()` has the text of each turn, of the question as `asked`, and whether an EventSource is closed for good.
import { createRoot } from "react-dom/client";
import { TailraceChatTransport } from "../../../web/ai-sdk.js";
import { useSession, useSSE, useTurn } from "../../../web/react.js";
import { ask, request, resume } from "../../../web/tailrace.js";

const texts = {};

function Turn({ turn, options }) {
  texts[turn] = useTurn({ turn, ...options }).text;
}

function LastEvent({ turn, options }) {
  texts[turn] = useSSE(`/v1/turns/${turn}/events?dialect=state`, options).data?.text;
}

function TurnOfSession({ turn, session, options }) {
  texts[turn] = useSession(session, options).turns.find((one) => one.turn === turn)?.text;
}

const mount = (Component, turn, options, session) => createRoot(document.createElement("div")).render(<Component {...{ turn, session, options }} />);

const transport = ({ key }) => new TailraceChatTransport(key ? { headers: { authorization: `Bearer ${key}` } } : {});

async function collect(name, stream) {
  texts[name] = "";
  for await (const chunk of stream) if (chunk.type === "text-delta") texts[name] += chunk.delta;
}

const READERS = {
  EventSource(turn) {
    texts[turn] = "";
    const source = new EventSource(`/v1/turns/${turn}/events`);
    source.onmessage = ({ data }) => {
      const { type, text } = JSON.parse(data);
      if (type === "delta") texts[turn] += text;
      if (type === "done") source.close();
    };
    source.onerror = () => (texts[`closed ${turn}`] = source.readyState === EventSource.CLOSED);
  },
  /** The function in docs/API.md. */
  read(turn) {
    texts[turn] = "";
    globalThis.read(`/v1/turns/${turn}/events`, ({ type, text }) => {
      if (type === "delta") texts[turn] += text;
      return type === "done";
    });
  },
  "tailrace.js": (turn, options) => resume(turn, { ...options, onText: (text) => (texts[turn] = text) }),
  useTurn: (turn, options) => mount(Turn, turn, options),
  useSSE: (turn, options) => mount(LastEvent, turn, options),
  useSession: async (turn, options) => mount(TurnOfSession, turn, options, (await request(`/v1/turns/${turn}`, options)).session),
  TailraceChatTransport: async (turn, options) => collect(turn, await transport(options).reconnectToStream({ chatId: turn })),
};

const ASKERS = {
  "tailrace.js": (text, options) => ask(text, { ...options, onText: (text) => (texts.asked = text) }),
  async TailraceChatTransport(text, options) {
    const messages = [{ id: "asked", role: "user", parts: [{ type: "text", text }] }];
    await collect("asked", await transport(options).sendMessages({ chatId: "left", messages, trigger: "submit-message" }));
  },
};

globalThis.begin = (key, reader, turns) => turns.forEach((turn) => READERS[reader](turn, { key }));
globalThis.ask = (key, asker, text) => void ASKERS[asker](text, { key });
globalThis.shown = () => texts;
