"""The server of common tutorials: FastAPI, an SSE response, `messages.stream` inside the request.

`uvicorn tutorial:app`. A lost connection loses the answer.
"""

import json
from collections.abc import AsyncIterator

import anthropic
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()
client = anthropic.AsyncAnthropic()


class Question(BaseModel):
    message: str


@app.post("/chat")
async def chat(question: Question) -> StreamingResponse:
    async def answer() -> AsyncIterator[str]:
        async with client.messages.stream(
            model="claude-sonnet-5-5", max_tokens=4096, messages=[{"role": "user", "content": question.message}]
        ) as stream:
            async for text in stream.text_stream:
                yield f"data: {json.dumps({'type': 'delta', 'text': text})}\n\n"
        yield f"data: {json.dumps({'type': 'done'})}\n\n"

    return StreamingResponse(answer(), media_type="text/event-stream")
