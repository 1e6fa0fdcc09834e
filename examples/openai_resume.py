"""Streams a chat completion of OpenAI's SDK, and resumes it after the last cursor when the connection was cut."""

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import openai

base, key = "http://localhost:8000/v1", "my-secret-key"
client = openai.OpenAI(base_url=base, api_key=key, max_retries=0)
question = {"role": "user", "content": "Name a river."}
once = {"Idempotency-Key": str(uuid.uuid4())}  # a repeated POST gets the same turn


def first() -> Iterator[dict[str, Any]]:
    for chunk in client.chat.completions.create(
        model="claude-sonnet-5-5", messages=[question], stream=True, extra_headers=once
    ):
        yield chunk.model_dump()


def rest(turn: str, after: object) -> Iterator[dict[str, Any]]:
    url = f"{base}/turns/{turn}/events?dialect=openai-chat&after={after}"
    with httpx2.stream("GET", url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                yield json.loads(line.removeprefix("data: "))


text, turn, after = "", None, 0
for _ in range(10):
    said = ""  # since the last cursor: discarded after a cut
    try:
        for chunk in rest(turn, after) if after else first():
            if "error" in chunk:
                raise SystemExit(chunk["error"]["message"])
            turn = chunk["id"].removeprefix("chatcmpl-")
            said += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            if cursor := chunk.get("cursor"):
                text, said, after = text + said, "", cursor
        break
    except (openai.APIConnectionError, httpx2.HTTPError):
        time.sleep(1)  # cut: resume after the last cursor
else:
    raise SystemExit("the answer was cut ten times")
print(text)
