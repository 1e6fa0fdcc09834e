"""The simulated Claude: an HTTP server that speaks Anthropic's wire protocol, free of charge.

Tailrace calls it with the real SDK, only with another base URL. An answer is a pure function of the request: tests know
its text byte for byte, and a continuation returns exactly the rest. `conversation`, `directive`, `answer` and `fault`
decide what to send; `event` renders it; `app` and `writer` do the I/O.
"""
