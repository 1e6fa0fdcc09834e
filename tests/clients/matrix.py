"""The client matrix: each row is a client with its language and dialect, and how it reads one turn to the end.

The rows drive test_matrix.py, which reads each turn over connections that are cut and while its generator is killed.
`make docs` lists them in docs/CLIENTS.md.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import anthropic
import httpx
import httpx2
import msgspec
from anthropic import AsyncAnthropic
from anthropic.types import Message
from httpx_sse import aconnect_sse
from openai import AsyncOpenAI

import tailrace
from tailrace.proto.ids import new_id
from tests.clients import node
from tests.clients.node import find_browser
from tests.clients.openai_chat import CUT, collect, complete_entries, event_text, resume_turn, text_of
from tests.harness.displayed_text import SAYS
from tests.harness.readers import story_of
from tests.integration.conftest import KEY

MODEL = "claude-haiku-5-5"
# httpx has no reconnection time; EventSource receives one from the stream.
RECONNECT_S = 0.05


class Answer(NamedTuple):
    """The answer as a client has it when the turn has ended."""

    turn: str
    text: str


class Cuts(NamedTuple):
    """How many connections are cut, after how many bytes of the response.

    The first bytes are the headers and the events before the text. EventSource tries again only after its headers.
    """

    connections: int
    bytes_min: int
    bytes_max: int
    whole: bytes = b""
    """Bytes that a cut never splits."""


Read = Callable[[str, str], Coroutine[Any, Any, Answer]]
"""Posts a message to the gateway at a URL, and reads the turn to the end, over as many connections as it takes."""


class Client(NamedTuple):
    name: str
    language: Literal["Python", "JavaScript"]
    dialect: str
    read: Read
    cuts: Cuts
    after_cuts: str = "resumes after cuts"
    is_reread: bool = False
    """After a cut the whole turn is read again, without the client."""
    is_in_browser: bool = False

    @property
    def id(self) -> str:
        return f"{self.dialect}-{self.name}"

    @property
    def features(self) -> tuple[str, ...]:
        return "stream", self.after_cuts, "generator killed during the answer"


# Anthropic.


async def reread(url: str, turn: str) -> Answer:
    """Reads a turn from the start: this dialect has no cursor for Anthropic's SDKs."""
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=30) as client:
        response = await client.get(f"{url}/v1/turns/{turn}/events?dialect=anthropic")
    return Answer(turn, SAYS["anthropic"](response.content))


async def anthropic_python(url: str, line: str) -> Answer:
    messages: Any = [{"role": "user", "content": line}]
    async with (
        AsyncAnthropic(base_url=url, api_key=KEY) as sdk,
        sdk.messages.stream(model=MODEL, max_tokens=500, messages=messages) as stream,
    ):
        try:
            message: Message = await stream.get_final_message()
        except (anthropic.AnthropicError, httpx2.HTTPError):
            return await reread(url, stream.current_message_snapshot.id.removeprefix("msg_"))
    text = "".join(block.text for block in message.content if block.type == "text")
    return Answer(message.id.removeprefix("msg_"), text)


async def anthropic_node(url: str, line: str) -> Answer:
    (shown,) = await node.run("anthropic.mjs", url, KEY, "stream", line)
    turn = shown["id"].removeprefix("msg_")
    return await reread(url, turn) if "error" in shown else Answer(turn, shown["text"])


# OpenAI.


async def chat_python(url: str, line: str) -> Answer:
    chunks: list[Any] = []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as sdk:
        stream = await sdk.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": line}], stream=True
        )
        turn = stream.response.headers["tailrace-turn"]
        while True:
            try:
                await collect(stream, chunks)
                break
            except CUT:
                chunks, cursor = complete_entries(chunks)
                stream = await resume_turn(sdk, turn, cursor)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    return Answer(turn, text_of(chunks))


async def chat_node(url: str, line: str) -> Answer:
    (shown,) = await node.run("openai-chat-resume.mjs", KEY, url, line)
    assert shown["finish"] == "stop"
    return Answer(shown["turn"], shown["text"])


async def responses_python(url: str, line: str) -> Answer:
    events: list[Any] = []
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key=KEY) as sdk:
        with suppress(*CUT):
            await collect(await sdk.responses.create(model=MODEL, input=line, stream=True), events)
        response = events[0].response.id
        while events[-1].type != "response.completed":
            last = events[-1].sequence_number
            with suppress(*CUT):
                await collect(await sdk.responses.retrieve(response, stream=True, starting_after=last), events)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return Answer(response.removeprefix("resp_"), event_text(events))


async def responses_node(url: str, line: str) -> Answer:
    (shown,) = await node.run("openai-responses-resume.mjs", KEY, url, line)
    assert shown["isNumbered"]
    return Answer(shown["id"].removeprefix("resp_"), shown["text"])


# The AI SDK.


async def workflow(url: str, line: str) -> Answer:
    body = {"messages": [{"id": "u1", "role": "user", "parts": [{"type": "text", "text": line}]}], "body": {}}
    (shown,) = await node.run("workflow.mjs", KEY, url, httpx2.Response(200, json=body).text)
    assert (shown["errors"], shown["warned"]) == ([], [])
    return Answer(shown["run"], "".join(part["text"] for part in shown["message"]["parts"] if part["type"] == "text"))


def use_chat(version: str) -> Read:
    async def read(url: str, line: str) -> Answer:
        (shown,) = await show_chats(version, (url, {"id": new_id(), "text": line}))
        assert (shown["status"], shown["errors"], shown["count"]) == ("ready", [], 2)
        return Answer(shown["turn"], shown["text"])

    return read


async def show_chats(version: str, *cases: tuple[str, Mapping[str, object]]) -> list[dict[str, Any]]:
    """Returns what each `useChat` of AI SDK `version` shows with Tailrace's transport (`js/use-chat.mjs`)."""
    arguments = [part for url, given in cases for part in (url, msgspec.json.encode(given).decode())]
    return await node.run("use-chat.mjs", version, KEY, *arguments)


# Readers of GET /v1/turns/{turn}/events.


async def post(url: str, line: str) -> str:
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=30) as client:
        response = await client.post(f"{url}/v1/turns", json={"message": line})
    assert response.status_code == 202, response.text
    turn: str = response.json()["turn"]
    return turn


async def httpx_sse(url: str, line: str) -> Answer:
    turn = await post(url, line)
    sent: list[bytes] = []
    last = "0"
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=30) as client:
        while not sent or story_of(sent).outcome == "running":
            events = f"{url}/v1/turns/{turn}/events"
            with suppress(httpx.TransportError):
                async with aconnect_sse(client, "GET", events, headers={"last-event-id": last}) as source:
                    async for event in source.aiter_sse():
                        sent.append(b"data: " + event.data.encode())
                        last = event.id
            await asyncio.sleep(RECONNECT_S)
    return Answer(turn, story_of(sent).text)


def node_reader(client: str, dialect: str) -> Read:
    async def read(url: str, line: str) -> Answer:
        turn = await post(url, line)
        (shown,) = await node.run("readers.mjs", KEY, client, f"{url}/v1/turns/{turn}/events?dialect={dialect}")
        assert shown["outcome"] == "completed"
        return Answer(turn, shown["text"])

    return read


# Clients that repeat their POST after a cut.


async def tailrace_blocking(url: str, line: str) -> Answer:
    def read() -> Answer:
        with httpx2.Client(trust_env=False) as http:
            end = tailrace.Client(url, KEY, http=http).ask(line).done()
        return Answer(end.turn, end.text)

    return await asyncio.to_thread(read)


async def tailrace_asyncio(url: str, line: str) -> Answer:
    async with httpx2.AsyncClient(trust_env=False) as http:
        answer = await tailrace.AsyncClient(url, KEY, http=http).ask(line)
        text = "".join([event.text async for event in answer if event.type == "delta"])
    return Answer(answer.turn, text)


def hook(name: str, component: str, dialect: str, cuts: Cuts) -> Client:
    """Returns a hook of web/react.js in Chromium, in StrictMode."""

    async def read(url: str, line: str) -> Answer:
        if component != "LastEvent":
            what = "session" if component == "Session" else "read"
            (seen,) = await run_hooks(url, (what, {"component": component, "line": line}))
            end = seen["turns"][0] if component == "Session" else seen["end"]
            assert (seen["error"], end["outcome"], seen["texts"]) == (None, "completed", [end["text"]])
            return Answer(end["turn"], end["text"])
        turn = await post(url, line)
        stream = f"/v1/turns/{turn}/events?dialect={dialect}"
        (seen,) = await run_hooks(url, ("read", {"component": component, "stream": stream}))
        assert (seen["error"], seen["isConnected"], seen["data"]["status"]) == (None, False, "completed")
        return Answer(turn, seen["data"]["text"])

    return Client(name, "JavaScript", dialect, read, cuts, is_in_browser=True)


async def run_hooks(url: str, *cases: tuple[str, Mapping[str, object]], key: str = KEY) -> list[dict[str, Any]]:
    """Returns what components of `js/hooks.jsx` show, each in a page of one browser."""
    known = {"key": key, "session": new_id()}
    arguments = [part for what, given in cases for part in (what, msgspec.json.encode({**known, **given}).decode())]
    return await node.run("hooks.mjs", url, *arguments, CHROMIUM=find_browser())


async def post_with(script: str, client: str, url: str, body: object, dialect: str) -> dict[str, Any]:
    """Runs a client of `js/post-clients.mjs`, in Node or in Chromium; returns what it showed."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    sent = (msgspec.json.encode(one).decode() for one in (headers, body))
    (shown,) = await node.run(script, client, url, *sent, dialect, CHROMIUM=find_browser())
    return shown


def one_message(line: str) -> object:
    return {"message": line}


def conversation(line: str) -> object:
    return {"messages": [{"role": "user", "content": line}]}


def messages(line: str) -> object:
    return {"model": MODEL, "max_tokens": 500, "stream": True, "messages": [{"role": "user", "content": line}]}


POSTS: dict[str, tuple[str, Callable[[str], object]]] = {
    "/v1/turns": ("tailrace", one_message),
    "/v1/messages": ("anthropic", messages),
    "/chat/stream": ("delta", one_message),
    "/ai/chat": ("content", conversation),
}
"""The dialect and the body of a POST to each route."""


def poster(name: str, script: str, client: str, path: str, cuts: Cuts) -> Client:
    """Returns a client that repeats its POST with its cursor after a cut."""
    dialect, body = POSTS[path]

    async def read(url: str, line: str) -> Answer:
        shown = await post_with(script, client, url + path, body(line), dialect)
        assert shown["outcome"] == "completed"
        return Answer(shown["turn"], shown["text"])

    return Client(name, "JavaScript", dialect, read, cuts, is_in_browser=script == "browser-posts.mjs")


SHORT_EVENTS = Cuts(3, 900, 1400)
# It waits at least a second before it reconnects, and twice as long after each cut.
POLYFILL = Cuts(2, 900, 1400)
# Also within the headers of the POST.
ANYWHERE = Cuts(5, 0, 2200)
# fetch-event-source stores the id of an event that is cut between these two; see gateway/http/sse.py.
WHOLE_EVENTS = SHORT_EVENTS._replace(whole=b"\n\n")
CLIENTS = (
    Client("anthropic (Python)", "Python", "anthropic", anthropic_python, Cuts(1, 2200, 4500), is_reread=True),
    Client("@anthropic-ai/sdk", "JavaScript", "anthropic", anthropic_node, Cuts(1, 2200, 4500), is_reread=True),
    Client("eventsource", "JavaScript", "anthropic", node_reader("EventSource", "anthropic"), Cuts(1, 1400, 3000)),
    Client("openai (Python)", "Python", "openai-chat", chat_python, Cuts(4, 1400, 3200)),
    Client("openai (Node)", "JavaScript", "openai-chat", chat_node, Cuts(4, 1400, 3200)),
    Client("openai (Python)", "Python", "openai-responses", responses_python, Cuts(4, 2800, 4500)),
    Client("openai (Node)", "JavaScript", "openai-responses", responses_node, Cuts(4, 2800, 4500)),
    Client("WorkflowChatTransport", "JavaScript", "ui", workflow, Cuts(4, 1100, 2200)),
    Client("useChat 5 (TailraceChatTransport)", "JavaScript", "ui", use_chat("5"), ANYWHERE),
    Client("useChat 6 (TailraceChatTransport)", "JavaScript", "ui", use_chat("6"), ANYWHERE),
    Client("useChat 7 (TailraceChatTransport)", "JavaScript", "ui", use_chat("7"), ANYWHERE),
    Client("httpx-sse", "Python", "tailrace", httpx_sse, SHORT_EVENTS),
    Client("tailrace.Client", "Python", "tailrace", tailrace_blocking, ANYWHERE),
    Client("tailrace.AsyncClient", "Python", "tailrace", tailrace_asyncio, ANYWHERE),
    poster("tailrace.js (Node)", "posts.mjs", "tailrace.js", "/v1/turns", ANYWHERE),
    poster("tailrace.js (Chromium)", "browser-posts.mjs", "tailrace.js", "/v1/turns", ANYWHERE),
    Client("eventsource", "JavaScript", "tailrace", node_reader("EventSource", "tailrace"), SHORT_EVENTS),
    Client("event-source-polyfill", "JavaScript", "tailrace", node_reader("EventSourcePolyfill", "tailrace"), POLYFILL),
    poster("fetch-event-source (POST)", "posts.mjs", "fetch-event-source", "/v1/turns", WHOLE_EVENTS),
    poster("fetch-event-source (POST)", "posts.mjs", "fetch-event-source", "/chat/stream", WHOLE_EVENTS),
    poster(
        "fetch-event-source (POST)", "posts.mjs", "fetch-event-source", "/v1/messages", Cuts(3, 1400, 3000, b"\n\n")
    ),
    poster("a tutorial's loop (Node)", "posts.mjs", "loop", "/chat/stream", SHORT_EVENTS),
    poster("a tutorial's loop (Chromium)", "browser-posts.mjs", "loop", "/chat/stream", SHORT_EVENTS),
    poster("a tutorial's loop (Node)", "posts.mjs", "loop", "/ai/chat", SHORT_EVENTS),
    poster("sse.js (POST)", "browser-posts.mjs", "sse.js", "/v1/turns", SHORT_EVENTS),
    Client("useSSE (eventsource)", "JavaScript", "state", node_reader("EventSource", "state"), Cuts(2, 900, 1400)),
    Client("useSSE (eventsource)", "JavaScript", "job", node_reader("EventSource", "job"), SHORT_EVENTS),
    Client(
        "fetch (Node)",
        "JavaScript",
        "text",
        node_reader("fetch", "text"),
        Cuts(3, 700, 1100),
        "replays from the start after cuts",
    ),
    hook("useTurn (Chromium)", "Turn", "tailrace", ANYWHERE),
    # It has several connections. One that has passed the place of a cut is not cut there.
    hook("useSession (Chromium)", "Session", "tailrace", ANYWHERE._replace(connections=3)),
    hook("useSSE (Chromium)", "LastEvent", "state", Cuts(2, 900, 1400)),
    hook("useSSE (Chromium)", "LastEvent", "job", SHORT_EVENTS),
)
