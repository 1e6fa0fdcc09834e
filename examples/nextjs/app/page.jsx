"use client";
// A chat with useChat of AI SDK 7. After a reload, or a lost connection, the running answer goes on.
import { useChat } from "@ai-sdk/react";
import { useEffect, useState } from "react";
import { TailraceChatTransport } from "../ai-sdk.js";

const transport = new TailraceChatTransport({ api: "/api/chat" });

export default function Page() {
  const [earlier, setEarlier] = useState(null);
  useEffect(() => {
    readMessages().then(setEarlier);
  }, []);
  return (
    <>
      <form action="/login" method="post">
        <input name="user" aria-label="User" required />
        <button>Log in</button>
      </form>
      {earlier && <Chat earlier={earlier} />}
    </>
  );
}

/** Reads the chat until the server answers. useChat sends what the page shows: without them, the chat would be forgotten. */
async function readMessages() {
  for (;;) {
    const response = await fetch("/api/chat/my-chat/messages").catch(() => null);
    const messages = response?.ok && (await response.json().catch(() => null)); // the connection may break within the body
    if (messages) return messages;
    if (response && !response.ok && response.status < 500 && response.status !== 429) return []; // a new chat, or no login
    await new Promise((wake) => setTimeout(wake, 1000));
  }
}

function Chat({ earlier }) {
  const options = { id: "my-chat", transport, resume: true, messages: earlier };
  const { messages, sendMessage, status, error } = useChat(options);
  // useChat's own stop() only closes the connection, and the model goes on.
  const stop = () => fetch("/api/chat/my-chat/stop", { method: "POST" });
  return (
    <>
      {messages.map((message) => (
        <p key={message.id} style={{ whiteSpace: "pre-wrap" }}>
          <b>{message.role}</b> <span>{message.parts.map((part) => part.type === "text" && part.text)}</span>
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
