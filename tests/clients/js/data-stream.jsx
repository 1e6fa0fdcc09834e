// Runs in a page: assistant-ui's useDataStreamRuntime with a tool and a system prompt, in StrictMode. `begin(body)` shows it.
import { AssistantRuntimeProvider } from "@assistant-ui/core/react";
import { useDataStreamRuntime } from "@assistant-ui/react-data-stream";
import { StrictMode, useEffect } from "react";
import { createRoot } from "react-dom/client";

const look = {
  description: "Looks.",
  parameters: { type: "object", properties: {} },
  execute: async (input) => (input.fails ? Promise.reject(new Error("too dark")) : { seen: "blue" }),
};
const errors = [];

function Chat({ body }) {
  const runtime = useDataStreamRuntime({ api: "/api/chat", body, onError: (error) => errors.push(error.message) });
  useEffect(() => runtime.registerModelContextProvider({ getModelContext: () => ({ system: "Be brief.", tools: { look } }) }), [runtime]);
  globalThis.thread = runtime.thread;
  return <AssistantRuntimeProvider runtime={runtime} />;
}

/** What the thread has. */
globalThis.shown = () => {
  const { isRunning, messages } = globalThis.thread?.getState() ?? { messages: [] };
  return { isRunning, errors, messages: messages.map(({ role, content, status }) => ({ role, content, status })) };
};

globalThis.begin = (body) =>
  createRoot(document.getElementById("root")).render(
    <StrictMode>
      <Chat body={body} />
    </StrictMode>,
  );
