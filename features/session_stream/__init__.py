"""Session streams: one response follows the running and the new turns of a session."""
