// Runs in a page: components with the hooks of web/react.js, in StrictMode. `begin(given)` shows one; a reload begins it again.
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { useSession, useSSE, useTurn } from "../../../web/react.js";

/** Asks in an effect, which StrictMode runs twice, and stores the turn for a reload. */
function Turn({ line, shared, options }) {
  const [stored, store] = useState(shared ?? sessionStorage.getItem("turn"));
  const keep = (event) => event.type === "start" && (sessionStorage.setItem("turn", event.turn), store(event.turn));
  const turn = useTurn({ turn: stored, onEvent: keep, ...options });
  useEffect(() => {
    if (!stored) turn.ask(line);
  }, []);
  globalThis.hook = turn;
  return <article>{turn.text}</article>;
}

function Session({ session, options, offline, defaults }) {
  const [shown, open] = useState(session);
  globalThis.open = open;
  globalThis.hook = useSession(shown, { ...options, offline, defaults });
  return globalThis.hook.turns.map(({ turn, text }) => <article key={turn}>{text}</article>);
}

function LastEvent({ stream, options }) {
  globalThis.hook = useSSE(stream, options);
  return <article>{globalThis.hook.data?.text}</article>;
}

const COMPONENTS = { Turn, Session, LastEvent };
let root;

/** What a person sees, and what the hook gives. */
globalThis.shown = () => {
  const { error, ...hook } = globalThis.hook ?? {};
  const texts = [...document.querySelectorAll("article")].map((article) => article.textContent);
  return { ...JSON.parse(JSON.stringify(hook)), error: error && { ...error, message: error.message }, texts };
};

globalThis.begin = ({ component, key, ...given }) => {
  sessionStorage.setItem("given", JSON.stringify({ component, key, ...given }));
  const Component = COMPONENTS[component];
  root = createRoot(document.getElementById("root"));
  root.render(
    <StrictMode>
      <Component {...given} options={{ key }} />
    </StrictMode>,
  );
};

globalThis.unmount = () => root.unmount();

if (sessionStorage.getItem("given")) globalThis.begin(JSON.parse(sessionStorage.getItem("given")));
