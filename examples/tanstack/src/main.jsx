// A chat with TanStack AI: npm install && npm run dev. Each tab with the same ?thread= shows the same, also while an
// answer runs. The model may call `book`, which waits until someone allows it, and `note`, which runs in one of the tabs.
import { fetchServerSentEvents, useChat } from "@tanstack/ai-react";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

const threadId = new URLSearchParams(location.search).get("thread") ?? "my-thread";
// By default, the client gives up after 1.3 seconds without a server.
const connection = fetchServerSentEvents("/api/agui", { reconnect: { maxAttempts: 120, delayMs: 500 } });
const keepNote = ({ text }) => {
  localStorage.notes = JSON.stringify([...JSON.parse(localStorage.notes ?? "[]"), text]);
  return "The note is kept in the browser.";
};
const note = { type: "object", properties: { text: { type: "string" } }, required: ["text"] };
const tools = [
  { name: "book", description: "Books a table.", inputSchema: { type: "object", properties: {} } },
  { name: "note", description: "Keeps a note in the browser.", inputSchema: note, execute: keepNote },
];
const forwardedProps = { approve: ["book"] };

function Chat() {
  const { messages, sendMessage, isLoading, error, interrupts, resumeInterruptsUnsafe } = useChat({
    threadId,
    // Loads the thread and its running answer from Tailrace.
    persistence: true,
    connection,
    tools,
    forwardedProps,
  });
  // stop() of useChat would only disconnect this tab.
  const stop = () =>
    fetch(`/api/copilotkit/agent/default/stop/${threadId}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: "{}",
    });
  const decide = (payload) =>
    resumeInterruptsUnsafe(interrupts.map(({ id }) => ({ interruptId: id, status: "resolved", payload })));
  return (
    <>
      {messages.map(({ id, role, parts }) => (
        <div key={id} className={role} style={{ whiteSpace: "pre-wrap" }}>
          {parts.map((part, number) => part.type === "text" && <p key={number}>{part.content}</p>)}
        </div>
      ))}
      {interrupts.length > 0 && (
        <p>
          Book a table? <button onClick={() => decide({ result: "Booked for 8 pm." })}>Allow</button>{" "}
          <button onClick={() => decide({ approved: false, reason: "The user does not want it." })}>Deny</button>
        </p>
      )}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          sendMessage(new FormData(event.target).get("message"));
        }}
      >
        <input name="message" aria-label="Message" required />
        <button disabled={isLoading}>Ask</button>
        <button type="button" onClick={stop} disabled={!isLoading}>
          Stop
        </button>
      </form>
      <small className="error">{error?.message}</small>
    </>
  );
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <Chat />
  </StrictMode>,
);
