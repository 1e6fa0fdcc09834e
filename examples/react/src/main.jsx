// A page with useTurn: npm install && npm run dev. It shows a running answer again after a reload. A message changes it.
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useTurn } from "./react.js";

function Chat() {
  const [before] = useState(() => sessionStorage.getItem("turn"));
  const { ask, steer, cancel, text, state, end, error } = useTurn({
    url: "/api/tailrace",
    turn: before,
    onEvent: (event) => event.type === "start" && sessionStorage.setItem("turn", event.turn),
  });
  return (
    <>
      <form
        onSubmit={(event) => {
          event.preventDefault();
          const message = new FormData(event.target).get("message");
          if (state === "live") steer(message);
          else ask(message);
        }}
      >
        <input name="message" aria-label="Message" required />
        <button>{state === "live" ? "Change" : "Ask"}</button>
        <button type="button" onClick={cancel} disabled={state !== "live"}>
          Stop
        </button>
      </form>
      <p className="text" style={{ whiteSpace: "pre-wrap" }}>
        {text}
      </p>
      <small>{state}</small> <small className="outcome">{error?.message ?? end?.outcome}</small>
    </>
  );
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <Chat />
  </StrictMode>,
);
