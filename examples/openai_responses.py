"""OpenAI's SDK at `/v1/responses`: after a cut, the rest is read by the response's id, at any gateway."""

import time

import httpx2
from openai import APIConnectionError, OpenAI

client = OpenAI(base_url="http://localhost:8000/v1", api_key="my-secret-key")
text, response_id, last, is_complete = "", "", 0, False
events = client.responses.create(model="claude-sonnet-5-5", input="Name a river.", stream=True)
while not is_complete:
    try:
        for event in events or client.responses.retrieve(response_id, stream=True, starting_after=last):
            last = event.sequence_number
            if event.type == "response.created":  # also if the answer starts again
                response_id, text = event.response.id, ""
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.failed":
                raise SystemExit(event.response.error.message)
            is_complete = event.type in ("response.completed", "response.incomplete")
    except (APIConnectionError, httpx2.TransportError):
        if not response_id:
            raise
        time.sleep(1)  # cut: read the rest, at this gateway or another, at once or after a day
    events = None
print(text)
