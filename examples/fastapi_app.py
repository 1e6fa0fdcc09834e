"""A backend with its own users between browsers and Tailrace, on FastAPI.

    pip install fastapi uvicorn httpx
    uvicorn fastapi_app:app --port 3000      then open http://localhost:3000 as ada, password lovelace

It holds the key (TAILRACE_KEY) of the gateway at TAILRACE_URL, and writes the user into each turn. Kill
it in the middle of an answer and start it again: the page goes on where it was.
"""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated
from urllib.parse import quote
from uuid import UUID

import httpx
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel
from starlette.background import BackgroundTask

PASSWORDS = {"ada": "lovelace", "eve": "moneypenny"}  # yours
# The cursor, and how Tailrace recognises an EventSource, also that of Safari.
PASSED_ON = ("last-event-id", "accept", "cache-control", "user-agent")

app = FastAPI()
tailrace = httpx.AsyncClient(
    base_url=os.environ.get("TAILRACE_URL", "http://127.0.0.1:8000"),
    headers={"Authorization": f"Bearer {os.environ.get('TAILRACE_KEY', 'none')}"},
    timeout=40,  # the gateway sends a heartbeat every 15 seconds
    limits=httpx.Limits(max_connections=None),  # httpx allows 100, and each reader needs one
)


def user_of(given: Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]) -> str:
    """Returns the user's name. Replace it by your login."""
    expected = PASSWORDS.get(given.username, "")
    if not expected or not secrets.compare_digest(given.password.encode(), expected.encode()):
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})
    return given.username


User = Annotated[str, Depends(user_of)]


class Question(BaseModel):
    message: str


@app.get("/")
async def page(_: User) -> FileResponse:
    return FileResponse(Path(__file__).with_name("eventsource.html"))


@app.post("/v1/turns")
async def ask(question: Question, user: User, idempotency_key: Annotated[str, Header()]) -> JSONResponse:
    """Passes on only what a user may choose."""
    body = {"message": question.message, "user": user}
    # No quoted name has a colon, so two users never have the same key.
    headers = {"Idempotency-Key": f"{quote(user, safe='')}:{idempotency_key}"}
    response = await tailrace.post("/v1/turns", json=body, headers=headers)
    return JSONResponse(response.json(), response.status_code)


@app.get("/v1/turns/{turn}/events")
async def read(turn: UUID, user: User, incoming: Request) -> Response:
    """Passes the stream of a turn on, only to the user of the turn."""
    record = await tailrace.get(f"/v1/turns/{turn}")
    if is_temporary(record):
        return come_back(record)
    if record.is_error or record.json().get("user") != user:
        raise HTTPException(404)
    headers = {name: value for name in PASSED_ON if (value := incoming.headers.get(name))}
    request = tailrace.build_request("GET", f"/v1/turns/{turn}/events", headers=headers)
    response = await tailrace.send(request, stream=True)
    if is_temporary(response):
        await response.aclose()
        return come_back(response)

    async def relay() -> AsyncIterator[bytes]:
        with suppress(httpx.TransportError):  # the page reconnects
            async for part in response.aiter_raw():
                yield part

    return StreamingResponse(
        relay(),
        response.status_code,
        {"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # nginx must not collect the events
        media_type=response.headers.get("content-type"),
        background=BackgroundTask(response.aclose),
    )


def is_temporary(response: httpx.Response) -> bool:
    return response.status_code >= 500 or response.status_code == 429


def come_back(refusal: httpx.Response | None = None) -> Response:
    """An EventSource gives up after any status but 200. After 200, it reconnects with the id of its last event."""
    wait_s = refusal.headers.get("retry-after", "1") if refusal else "1"
    return Response(f"retry: {wait_s}000\n\n", media_type="text/event-stream")


@app.exception_handler(httpx.TransportError)
async def report_unreachable(request: Request, _: Exception) -> Response:
    """Answers when Tailrace cannot be reached."""
    if request.url.path.endswith("/events"):
        return come_back()
    return JSONResponse({"error": {"message": "Tailrace cannot be reached: try again"}}, 502)
