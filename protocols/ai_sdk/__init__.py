"""The routes and the dialect `ui` of AI SDK: `useChat` with `resume: true`, and WorkflowChatTransport."""
