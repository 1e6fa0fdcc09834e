"""Anthropic's SDK: after a cut, the POST is repeated with its key, and the same turn is streamed from its start."""

import uuid

import anthropic
import httpx2

client = anthropic.Anthropic(base_url="http://localhost:8000", api_key="my-secret-key")
question = {"role": "user", "content": "Name a river."}
key = {"Idempotency-Key": str(uuid.uuid4())}
for _ in range(5):
    text = ""
    try:
        with client.messages.stream(
            model="claude-sonnet-5-5", max_tokens=1000, messages=[question], extra_headers=key
        ) as stream:
            for piece in stream.text_stream:
                text += piece
        break
    except (anthropic.APIConnectionError, httpx2.TransportError):
        continue  # cut: once more, from the beginning
print(text)
