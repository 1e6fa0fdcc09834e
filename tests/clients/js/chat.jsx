// Runs in a page: a chat with `useChat` as its documentation has it, in StrictMode. `begin(chat)` shows it; a reload begins it again.
import { useChat } from "@ai-sdk/react";
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithToolCalls } from "ai";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";

const textOf = (message) => message.parts.flatMap((part) => (part.type === "text" ? [part.text] : [])).join("");

// Answers that have come to an end, whichever.
let finished = 0;
// Resumptions: those that were begun (StrictMode begins two), and those that are under way.
let resumed = 0;
let resuming = 0;

async function counted(url, init) {
  const isResumption = String(url).endsWith("/stream");
  if (isResumption) [resumed, resuming] = [resumed + 1, resuming + 1];
  try {
    return await fetch(url, init);
  } finally {
    if (isResumption) resuming -= 1;
  }
}

function Chat({ id, messages, body }) {
  const chat = useChat({
    id,
    messages,
    resume: true,
    transport: new DefaultChatTransport({ api: "/api/chat", body, fetch: counted }),
    sendAutomaticallyWhen: lastAssistantMessageIsCompleteWithToolCalls,
    onFinish: () => (finished += 1),
    onToolCall({ toolCall }) {
      chat.addToolOutput({ tool: toolCall.toolName, toolCallId: toolCall.toolCallId, output: { seen: toolCall.input } });
    },
  });
  globalThis.chat = chat;
  return chat.messages.map((message) => (
    <article key={message.id} data-role={message.role}>
      {textOf(message)}
    </article>
  ));
}

/** What a person sees, and what the chat knows. */
globalThis.shown = () => ({
  status: globalThis.chat?.status,
  finished,
  hasResumed: resumed > 0 && resuming === 0,
  error: globalThis.chat?.error?.message ?? null,
  texts: [...document.querySelectorAll("article")].map((article) => [article.dataset.role, article.textContent]),
  messages: globalThis.chat?.messages,
});

globalThis.begin = async (given) => {
  sessionStorage.setItem("chat", JSON.stringify(given));
  const response = await fetch(`/api/chat/${given.id}/messages`);
  const messages = response.ok ? await response.json() : [];
  createRoot(document.getElementById("root")).render(
    <StrictMode>
      <Chat {...given} messages={messages} />
    </StrictMode>,
  );
};

if (sessionStorage.getItem("chat")) globalThis.begin(JSON.parse(sessionStorage.getItem("chat")));
