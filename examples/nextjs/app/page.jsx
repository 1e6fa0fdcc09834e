"use client";
// A chat with useChat of AI SDK 7. After a reload, or a lost connection, the running answer goes on.
import { useChat } from "@ai-sdk/react";
import { TailraceChatTransport } from "../ai-sdk.js";

const transport = new TailraceChatTransport({ api: "/api/chat" });

export default function Page() {
  const { messages, sendMessage, stop, status, error } = useChat({ id: "my-chat", transport, resume: true });
  return (
    <>
      <form action="/login" method="post">
        <input name="user" aria-label="User" required />
        <button>Log in</button>
      </form>
      {messages.map((message) => (
        <p key={message.id} style={{ whiteSpace: "pre-wrap" }}>
          <b>{message.role}</b> {message.parts.map((part) => part.type === "text" && part.text)}
        </p>
      ))}
      <form
        onSubmit={(event) => {
          event.preventDefault();
          sendMessage({ text: new FormData(event.target).get("message") });
        }}
      >
        <input name="message" aria-label="Message" required />
        <button>Send</button>
        <button type="button" onClick={stop} disabled={status !== "streaming"}>
          Stop
        </button>
      </form>
      <small>{error?.message ?? status}</small>
    </>
  );
}
