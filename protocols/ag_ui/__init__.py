"""The routes and the dialects of AG-UI, for HttpAgent, CopilotKit and TanStack AI."""
