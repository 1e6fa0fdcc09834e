// A page of useChat with the transport, which TypeScript checks.
import { useChat } from "@ai-sdk/react";
import { TailraceChatTransport } from "./ai-sdk.js";

export function Chat() {
  const chat = useChat({ transport: new TailraceChatTransport({ api: "/api/chat" }), onError: () => void chat.resumeStream() });
  return <p>{chat.messages.length}</p>;
}
