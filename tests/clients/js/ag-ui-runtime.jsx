// Runs in a page: assistant-ui's useAgUiRuntime with a tool of the page, in StrictMode. `begin(forwardedProps)` shows it.
import { HttpAgent } from "agui-v0";
import { AssistantRuntimeProvider } from "@assistant-ui/core/react";
import { useAgUiRuntime } from "@assistant-ui/react-ag-ui";
import { StrictMode, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";

const look = {
  description: "Looks.",
  parameters: { type: "object", properties: {} },
  execute: async () => ({ seen: "blue" }),
};
const errors = [];

function Chat() {
  const [agent] = useState(() => new HttpAgent({ url: "/api/agui" }));
  const runtime = useAgUiRuntime({ agent, onError: (error) => errors.push(error.message) });
  useEffect(() => runtime.registerModelContextProvider({ getModelContext: () => ({ tools: { look } }) }), [runtime]);
  globalThis.thread = runtime.thread;
  return <AssistantRuntimeProvider runtime={runtime} />;
}

/** What the thread has. */
globalThis.shown = () => {
  const { isRunning, messages } = globalThis.thread?.getState() ?? { messages: [] };
  return { isRunning, errors, messages: messages.map(({ role, content, status }) => ({ role, content, status })) };
};

globalThis.begin = () =>
  createRoot(document.getElementById("root")).render(
    <StrictMode>
      <Chat />
    </StrictMode>,
  );
