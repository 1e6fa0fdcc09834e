"""OpenAI's Responses API over a WebSocket: each message is an HTTP request to the same gateway (ADR 34)."""
