// A chat with CopilotKit and no runtime of its own: npm install && npm run dev. Each tab with the same ?thread= shows
// the same, also while an answer runs. The model may call `book`, which waits until someone allows it.
import { CopilotChat, CopilotKitProvider, useAgent, useCopilotKit, useInterrupt } from "@copilotkit/react-core/v2";
import "@copilotkit/react-core/v2/styles.css";
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";

const threadId = new URLSearchParams(location.search).get("thread") ?? "my-thread";
// A frontend tool of CopilotKit would run without a decision, so Tailrace gets the tool in the format of Claude's API.
const properties = {
  tools: [{ name: "book", description: "Books a table.", input_schema: { type: "object", properties: {} } }],
  approve: ["book"],
};
const decision = {
  render: ({ resolve }) => (
    <p>
      Book a table? <button onClick={() => resolve({ result: "Booked for 8 pm." })}>Allow</button>{" "}
      <button onClick={() => resolve({ approved: false, reason: "The user does not want it." })}>Deny</button>
    </p>
  ),
};

function Chat() {
  const [error, setError] = useState();
  const { agent } = useAgent();
  const { copilotkit } = useCopilotKit();
  useInterrupt(decision);
  // CopilotKit does not reconnect, and the answer goes on in Tailrace. This loads the thread, and follows the answer.
  const connect = () => {
    setError();
    agent.setMessages([]);
    copilotkit.connectAgent({ agent });
  };
  return (
    <>
      <CopilotChat threadId={threadId} onError={({ error }) => setError(error)} />
      {error && (
        <p>
          <small className="error">{error.message}</small> <button onClick={connect}>Reconnect</button>
        </p>
      )}
    </>
  );
}

createRoot(document.getElementById("root")).render(
  <StrictMode>
    <CopilotKitProvider runtimeUrl="/api/copilotkit" properties={properties}>
      <Chat />
    </CopilotKitProvider>
  </StrictMode>,
);
