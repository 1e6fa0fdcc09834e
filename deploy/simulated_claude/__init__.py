"""The simulated Claude: an HTTP server that speaks Anthropic's wire protocol; it never imports the rest of Tailrace.

It is here so that the real SDK is always in the path: nothing in the product knows it, it is only another base URL.
An answer is a pure function of the request, so that a test knows the whole text byte for byte, and a continuation
gives exactly the rest. Read `conversation`, `directive`, `answer` and `fault`, which decide; then `event`, which
renders; then `app`, which only waits and writes.
"""
