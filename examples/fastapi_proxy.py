"""A backend with its own users for pages with tailrace.js, on FastAPI: it adds the key and passes the requests on.

    pip install fastapi uvicorn ./client      (the client of a checkout of Tailrace)
    uvicorn fastapi_proxy:app --port 3000

It holds the key (TAILRACE_KEY) of the gateway at TAILRACE_URL. A page asks with `{url: "/api/tailrace"}` and a session
whose name begins with its user: `ada:chat-1`.
"""

import secrets

from fastapi import FastAPI, HTTPException, Request
from fastapi.security import HTTPBasic

import tailrace

PASSWORDS = {"ada": "lovelace", "eve": "moneypenny"}  # yours

app = FastAPI()
client = tailrace.AsyncClient()
basic = HTTPBasic()


async def user_of(request: Request) -> str:
    """Returns the user's name. Replace it by your login. Raises HTTPException."""
    given = await basic(request)
    expected = PASSWORDS.get(given.username, "") if given else ""
    if not expected or not secrets.compare_digest(given.password.encode(), expected.encode()):
        raise HTTPException(401, headers={"WWW-Authenticate": "Basic"})
    return given.username


async def may_use(request: tailrace.ProxiedRequest) -> bool:
    """Returns whether the session, or the session of the turn, is the user's."""
    user = await user_of(Request(request.scope))
    match request.path.split("/")[2:]:
        case ["turns"]:
            body = request.json()
            session = body.get("session")
            # Passes on only what a user may choose.
            is_ours = body.keys() <= {"message", "messages", "session", "create_session", "parent", "on_busy"}
        case ["turns", turn, *_]:
            session, is_ours = (await client.turn(turn))["session"], True
        case ["sessions", session, *_]:
            is_ours = True
        case ["files"] | ["blobs", _]:  # their names are secrets
            return True
    return is_ours and isinstance(session, str) and session.startswith(f"{user}:")


app.mount("/api/tailrace", tailrace.proxy(may_use=may_use))
