"""Values that name a place or a thing: what each one opens of another session, private user or tenant.

tests/positions.csv says it of each value of each route, and is a table in docs/AUTH.md. The other one's texts have a
word; neither it nor an id that was not sent may be in status, headers or body.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest

from tailrace.features.gateway import ROUTES
from tailrace.gateway.http.last_event_id import QUERY_NAMES
from tailrace.proto.ids import new_id
from tailrace.proto.runtime.gather import gather_limited
from tailrace.proto.version import VERSION
from tests.harness.route_table import MESSAGE, ROWS, path_parameters
from tests.integration.test_private_users import RESULT, People, end, message, people, run_of, ui_message
from tests.positions import ALL, NOTHING, Row, find_problems, read_table
from tools.openapi.document import build_document

__all__ = ["people"]

TABLE = read_table()
# How long a stream that stays open is read after its first event.
STREAM_S = 0.4
AT_ONCE = 12
Ids = dict[str, str]
Json = dict[str, Any]


class Things(NamedTuple):
    """The things of one owner."""

    word: str
    """The word that each of its texts has."""
    line: str
    """The question of its turns."""
    ids: Ids
    """Its ids, by the names of path parameters and of values."""
    cursors: list[str]
    """Sequences of its entries, and positions in streams of sessions with them."""
    pages: list[str]
    """The `next` of its lists."""
    posted: dict[str, tuple[str, str]]
    """The first event and the Idempotency-Key of a turn with the body of `equal_bodies`, by path."""


class Sent(NamedTuple):
    """The additions of a request to its route: query parameters, headers, and a body in place of the usual one."""

    query: Mapping[str, str] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})
    body: Json | None = None


async def make(client: httpx2.AsyncClient, prefix: str = "", project: str = "none") -> Things:
    """Makes a thing of each kind. The names of its sessions begin with `prefix`."""
    word = f"word{new_id().replace('-', '')[-12:]}"
    line, key = f"#sim words=3 rate=0 tag={word}", new_id()
    named = {"session": f"{prefix}{new_id()}", "create_session": True}
    first = await end(client, {"message": line, **named})
    called = await end(client, {"message": f"{line} tool=pay", "tools": [{"name": "pay", "input_schema": {}}], **named})
    running = await client.post(
        "/v1/turns",
        json={"message": f"#sim words=100000 rate=9 tag={word}", **named, "session": f"{prefix}{new_id()}"},
        headers={"idempotency-key": key},
    )
    ids = {"running": running.json()["turn"], "key": key, "user": word, "run": new_id(), "project": project}
    asked = {
        "threadId": f"{prefix}{new_id()}",
        "runId": ids["run"],
        "messages": [{"id": "1", "role": "user", "content": line}],
    }
    ids["turn_of_run"] = (await client.post("/api/agui", json=asked)).headers["tailrace-turn"]
    spoken = await client.post("/chat", json={"message": line})
    ids["cookie"] = spoken.headers["set-cookie"].split(";")[0]
    posted = {}
    for path, body in equal_bodies(line).items():
        headers = {"x-session-id": f"{prefix}{new_id()}", "idempotency-key": new_id()}
        turn = (await client.post(path, json=body, headers=headers)).headers["tailrace-turn"]
        ids[f"turn of {path}"] = turn
        posted[path] = ((await read_ids(client, turn))[0], headers["idempotency-key"])
    coded = {"model": "claude-sonnet-5-5", "input": f"{line} server=code_execution"}
    coded["tools"] = [{"type": "code_interpreter", "container": {"type": "auto"}}]  # type: ignore[assignment]
    response = (await client.post("/v1/responses", json=coded)).json()["id"]
    batch = {"requests": [{"custom_id": name, "params": {"message": line}} for name in ("one", "two")]}
    batch = (await client.post("/v1/turn-batches", json=batch)).json()
    lines = {"custom_id": "one", "url": "/v1/responses", "body": {"input": line}}
    upload = {"file": ("a.jsonl", msgspec.json.encode(lines))}
    file = (await client.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
    document = {"file": ("a.txt", f"{word} river".encode())}
    ids["document"] = (await client.post("/v1/files", files=document, data={"purpose": "user_data"})).json()["id"]
    of_lines = {"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h"}
    file_batch = (await client.post("/v1/batches", json=of_lines)).json()["id"]
    params = MESSAGE | {"messages": question(line)}
    of_messages = {"requests": [{"custom_id": "one", "params": params}]}
    messages = (await client.post("/v1/messages/batches", json=of_messages)).json()["id"]
    for turn in (batch["batch"], messages.removeprefix("msgbatch_"), file_batch.removeprefix("batch_")):
        await client.get(f"/v1/turns/{turn}/events")
    ticket = await client.post(f"/v1/turns/{first['turn']}/tickets", json={"is_shared": True})
    ids["ticket"] = ticket.json()["ticket"]
    calls = (await client.get(f"/v1/sessions/{first['session']}/calls")).json()["calls"]
    of_path = path_parameters(
        first["turn"], first["session"], project, batch["batch"], file, file_batch, messages, calls[0]["call"]
    )
    ids |= of_path | {"response_id": response, "called": called["turn"]}
    ids["container"] = response.replace("resp_", "cntr_")
    own, live = await read_ids(client, first["turn"]), await read_ids(client, ids["running"])
    cursors = [own[0], own[-1], live[0], *(f"{after}.{seq}-{seq}" for after in (0, 9**12) for seq in (own[0], live[0]))]
    return Things(word, line, ids, cursors, await read_pages(client, ids), posted)


async def read_ids(client: httpx2.AsyncClient, turn: str) -> list[str]:
    """Returns the ids of a turn's events, of a running one the first."""
    shown = ""
    with suppress(TimeoutError):
        async with asyncio.timeout(1), client.stream("GET", f"/v1/turns/{turn}/events") as answer:
            async for text in answer.aiter_text():
                shown += text
    return re.findall(r"^id: (\d+)$", shown, re.MULTILINE)


async def read_pages(client: httpx2.AsyncClient, ids: Ids) -> list[str]:
    """Returns the cursors of the lists of its things: `next`, `last_id`."""
    found: list[Any] = []
    for row in TABLE:
        if row.value in ("after", "after_id") and not ROWS[row.method, row.path].is_endless and row.method == "GET":
            page = await client.get(row.path.format(**ids), params={"limit": 1})
            if page.headers["content-type"] == "application/json" and page.is_success:
                found += [page.json().get(name) for name in ("next", "last_id")]
    return [one for one in found if isinstance(one, str)]


def question(line: str) -> list[Json]:
    return [{"role": "user", "content": line}]


def equal_bodies(line: str) -> dict[str, Json]:
    """Returns the body of a turn whose session is in a header, or nowhere, by path. Two users send the same one."""
    return {
        "/chat/stream": {"message": line},
        "/ai/chat": {"messages": question(line)},
        "/v1/messages": MESSAGE | {"messages": question(line)},
        "/v1/chat/completions": {"model": "claude-haiku-5-5", "messages": question(line)},
        "/v1/responses": {"model": "claude-sonnet-5-5", "input": line},
    }


def blocks(file: str) -> list[Json]:
    return [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": file}}]}]


# How a value is sent with what is the sender's own: `o` are its things, `t` those of the other one.
Send = Callable[[Things, Things], list[Sent]]
SIMULATED = "#sim words=1 rate=0"


def in_body(base: Callable[[Things], Json], name: str, of: str) -> Send:
    """Sends the other one's id `of` in a field of the body."""
    return lambda o, t: [Sent(body=base(o) | {name: t.ids[of]})]


def turn_of(o: Things) -> Json:
    return {"message": SIMULATED, "session": o.ids["session"], "on_busy": "branch"}


def chat_of(o: Things) -> Json:
    return ui_message(o.ids)


def run_with(o: Things) -> Json:
    return run_of(o.ids)


def completion(_: Things) -> Json:
    return {"model": "claude-haiku-5-5", "messages": question(SIMULATED)}


def response(_: Things) -> Json:
    return {"model": "claude-sonnet-5-5", "input": SIMULATED}


def resumed(o: Things, t: Things) -> list[Sent]:
    """A decision about the other one's call in the sender's own thread."""
    entry = {"interruptId": t.ids["call"], "status": "resolved", "payload": {"approved": True}}
    return [Sent(body=run_of(o.ids) | {"messages": [], "resume": [entry]})]


def tool_message(o: Things, t: Things) -> list[Sent]:
    sent = {"id": "2", "role": "tool", "toolCallId": t.ids["call"], "content": "forged"}
    return [Sent(body=run_of(o.ids) | {"messages": [sent]})]


def tool_part(o: Things, t: Things) -> list[Sent]:
    part = {"type": "tool-pay", "toolCallId": t.ids["call"], "state": "output-available", "input": {}, "output": "x"}
    asked = [*chat_of(o)["messages"], {"id": "a", "role": "assistant", "parts": [part]}]
    return [Sent(body=chat_of(o) | {"messages": asked})]


def result_of(t: Things) -> list[Json]:
    return [{"role": "user", "content": [RESULT | {"tool_use_id": t.ids["call"]}]}]


def in_run(name: str, of: str) -> Send:
    return in_body(run_with, name, of)


def of_project(base: Callable[[Things], Json], name: str = "project_id") -> Send:
    return in_body(base, name, "project")


def in_forwarded(o: Things, t: Things) -> list[Sent]:
    return [Sent(body=run_with(o) | {"forwardedProps": {"project_id": t.ids["project"]}})]


def header(name: str, of: str, base: Callable[[Things], Json] | None = None) -> Send:
    return lambda o, t: [Sent(headers={name: t.ids[of]}, body=None if base is None else base(o))]


def message_of(o: Things) -> Json:
    return message(o.ids) | {"messages": question(SIMULATED)}


RUNS: dict[str, Send] = {
    "threadId": in_run("threadId", "session"),
    "runId": in_run("runId", "run"),
    "parentRunId": in_run("parentRunId", "run"),
    "id": lambda o, t: [Sent(body=run_with(o) | {"messages": [{"id": t.ids["turn"], **question(SIMULATED)[0]}]})],
    "interruptId": resumed,
    "toolCallId": tool_message,
    "project_id": in_forwarded,
    "Last-Event-ID": lambda o, t: [Sent(headers={"last-event-id": one}, body=run_with(o)) for one in t.cursors],
}
# The bodies with a value, by path. Values of the query are sent by `in_query`, cursors of a POST by `with_cursor`.
SENDING: dict[str, dict[str, Send]] = {
    "/v1/turns": {
        "session": in_body(turn_of, "session", "session"),
        "parent": lambda o, t: [
            Sent(body=turn_of(o) | {"parent": t.ids[turn], "on_busy": busy})
            for turn in ("turn", "running")
            for busy in ("branch", "interrupt", "queue")
        ],
        "project": of_project(turn_of, "project"),
        "user": in_body(turn_of, "user", "user"),
        "prompt.name": lambda _, t: [Sent(body={"prompt": {"name": t.ids["session"]}})],
        "content[].tool_use_id": lambda o, t: [
            Sent(body={"session": o.ids["session"], "messages": result_of(t), "on_busy": "branch"})
        ],
        "content[].source.file_id": lambda _, t: [Sent(body={"messages": blocks(t.ids["document"])})],
    },
    "/v1/turns/{turn}/steer": {
        "content[].tool_use_id": lambda _, t: [Sent(body={"message": result_of(t)[0]["content"]})],
        "content[].source.file_id": lambda _, t: [Sent(body={"message": blocks(t.ids["document"])[0]["content"]})],
    },
    "/v1/sessions/{session}/calls/{call}": {
        "{call}": lambda _, t: [Sent({"{call}": t.ids["call"]}, body={"result": "forged"})],
        "turn": lambda _, t: [
            Sent({"{call}": t.ids["call"]}, body={"result": "forged", "turn": t.ids[turn]})
            for turn in ("turn", "called")
        ],
        "result[].source.file_id": lambda _, t: [Sent(body={"result": blocks(t.ids["document"])[0]["content"]})],
    },
    "/api/copilotkit/agent/{agent}/stop/{thread}": {
        "runId": lambda _, t: [Sent(body={"runId": t.ids[one]}) for one in ("run", "turn", "running")]
    },
    "/v1/messages": {
        "X-Session-ID": header("x-session-id", "session", message_of),
        "X-Project-ID": lambda o, t: [
            Sent(headers={"x-session-id": o.ids["session"], "x-project-id": t.ids["project"]}, body=message_of(o))
        ],
        "X-Claude-Code-Session-Id": header("x-claude-code-session-id", "session", message_of),
        "X-Claude-Code-Agent-Id": lambda o, t: [
            Sent(
                headers={"x-claude-code-session-id": t.ids["session"], "x-claude-code-agent-id": t.ids["run"]},
                body=message_of(o),
            )
        ],
        "content[].source.file_id": lambda o, t: [Sent(body=message_of(o) | {"messages": blocks(t.ids["document"])})],
    },
    "/v1/messages/count_tokens": {
        "content[].source.file_id": lambda _, t: [
            Sent(body={"model": "claude-sonnet-5-5", "messages": blocks(t.ids["document"])})
        ]
    },
    "/v1/messages/batches": {
        "content[].source.file_id": lambda o, t: [
            Sent(
                body={
                    "requests": [{"custom_id": "1", "params": message_of(o) | {"messages": blocks(t.ids["document"])}}]
                }
            )
        ]
    },
    "/v1/turn-batches": {
        "user": lambda _, t: [
            Sent(body={"requests": [{"custom_id": "1", "params": {"message": SIMULATED, "user": t.ids["user"]}}]})
        ],
        "content[].source.file_id": lambda _, t: [
            Sent(body={"requests": [{"custom_id": "1", "params": {"messages": blocks(t.ids["document"])}}]})
        ],
    },
    "/v1/chat/completions": {
        "X-Session-ID": header("x-session-id", "session", completion),
        "session_id": in_body(completion, "session_id", "session"),
        "X-Project-ID": header("x-project-id", "project", lambda o: completion(o) | {"session_id": o.ids["session"]}),
        "project_id": of_project(lambda o: completion(o) | {"session_id": o.ids["session"]}),
        "user": in_body(completion, "user", "user"),
        "file_id": lambda o, t: [
            Sent(
                body=completion(o)
                | {
                    "messages": [
                        {"role": "user", "content": [{"type": "file", "file": {"file_id": t.ids["document"]}}]}
                    ]
                }
            )
        ],
        "id": lambda o, t: [Sent(body=completion(o) | {"messages": answered(t.ids["call"])})],
        "tool_call_id": lambda o, t: [Sent(body=completion(o) | {"messages": answered(t.ids["call"])})],
    },
    "/v1/responses": {
        "X-Session-ID": header("x-session-id", "session", response),
        "session_id": in_body(response, "session_id", "session"),
        "conversation": in_body(response, "conversation", "session"),
        "previous_response_id": in_body(response, "previous_response_id", "response_id"),
        "X-Project-ID": header("x-project-id", "project", lambda o: response(o) | {"session_id": o.ids["session"]}),
        "project_id": of_project(lambda o: response(o) | {"session_id": o.ids["session"]}),
        "user": in_body(response, "user", "user"),
        "prompt": lambda o, t: [Sent(body=response(o) | {"prompt": {"id": t.ids["response_id"]}})],
        "id": lambda o, t: [
            Sent(
                body=response(o)
                | {
                    "input": [
                        *question(SIMULATED),
                        {"type": "item_reference", "id": f"msg_{t.ids['turn']}_0"},
                        *question(SIMULATED),
                    ]
                }
            )
        ],
        "call_id": lambda o, t: [
            Sent(
                body=response(o)
                | {"input": [{"type": "function_call_output", "call_id": t.ids["call"], "output": "x"}]}
            )
        ],
        "container_id": lambda o, t: [
            Sent(
                body=response(o)
                | {
                    "input": [
                        *question(SIMULATED),
                        {"type": "code_interpreter_call", "container_id": t.ids["container"]},
                    ],
                    "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
                }
            )
        ],
        "tools[].container": lambda o, t: [
            Sent(body=response(o) | {"tools": [{"type": "code_interpreter", "container": t.ids["container"]}]})
        ],
        "file_id": lambda o, t: [
            Sent(
                body=response(o)
                | {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": t.ids["document"]}]}]}
            )
        ],
        "X-Stainless-Retry-Count": lambda o, t: [
            Sent(
                headers={"x-stainless-retry-count": "1", "x-session-id": f"{o.ids['session']}-equal"},
                body=equal_bodies(t.line)["/v1/responses"],
            )
        ],
    },
    "/api/chat": {
        "id": in_body(chat_of, "id", "session"),
        "session_id": lambda o, t: [Sent(body=without(chat_of(o), "id") | {"session_id": t.ids["session"]})],
        "threadId": lambda o, t: [Sent(body=without(chat_of(o), "id") | {"threadId": t.ids["session"]})],
        "project_id": of_project(chat_of),
        "messageId": lambda o, t: [
            Sent(body=chat_of(o) | {"messageId": t.ids["turn"], "trigger": trigger})
            for trigger in ("regenerate-message", "submit-message")
        ],
        "toolCallId": tool_part,
        "idempotency_key": in_body(chat_of, "idempotency_key", "key"),
    },
    "/api/agui": RUNS,
    "/api/copilotkit/agent/{agent}/run": RUNS,
    "/api/copilotkit/agent/{agent}/connect": RUNS,
    "/v1/batches": {
        "input_file_id": lambda _, t: [
            Sent(
                body={"input_file_id": t.ids["file_id"], "endpoint": "/v1/responses", "completion_window": "24h"},
            )
        ],
        "lines of the file": lambda _, t: [
            Sent(body={"lines": {"input": SIMULATED, "previous_response_id": t.ids["response_id"]}})
        ],
    },
    "/v1/sessions": {
        "id": lambda _, t: [Sent(body={"id": t.ids["session"]})],
        "project_id": lambda _, t: [Sent(body={"project_id": t.ids["project"]})],
        "user": lambda _, t: [Sent(body={"user": t.ids["user"]})],
    },
    "/v1/projects": {"id": lambda _, t: [Sent(body={"name": "Rivers", "id": t.ids["project"]})]},
    "/chat": {"Cookie": lambda _, t: [Sent(headers={"cookie": t.ids["cookie"]}, body={"message": SIMULATED})]},
    "/api/start-job": {"prompt": lambda _, t: [Sent(body={"prompt": t.ids["session"]})]},
    "/api/process": {"prompt": lambda _, t: [Sent(body={"prompt": t.ids["session"]})]},
}


def without(body: Json, name: str) -> Json:
    return {key: value for key, value in body.items() if key != name}


def answered(call: str) -> list[Json]:
    calls = [{"id": call, "type": "function", "function": {"name": "pay", "arguments": "{}"}}]
    asked = [*question(SIMULATED), {"role": "assistant", "tool_calls": calls}]
    return [*asked, {"role": "tool", "tool_call_id": call, "content": "forged"}]


# The value of the query, by its name; a cursor or a page otherwise.
OF_QUERY = {
    "turn": "called",
    "threadId": "session",
    "runId": "run",
    "session": "session",
    "project_id": "project",
    "user": "user",
    "key": "key",
    "ticket": "ticket",
}


def in_query(row: Row, o: Things, t: Things) -> list[Sent]:
    """Sends a value in the query, or a cursor in each of its spellings."""
    more = {"runId": o.ids["run"]} if row.path == "/api/agui" and row.value not in ("threadId", "runId") else {}
    if row.path == "/v1/responses/{response_id}":
        more = {"stream": "true"}
    if row.value == "session" and row.path == "/v1/turns":
        more = {"status": "running"}
    if row.value in OF_QUERY:
        return [Sent(more | {row.value: t.ids[OF_QUERY[row.value]]})]
    if row.value in ("starting_after", "startIndex"):
        return [Sent(more | {row.value: one}) for one in ("-1", "0", *t.cursors[:3])]
    if row.value == "Last-Event-ID":
        by_name = [Sent(more | {name: one}) for name in QUERY_NAMES for one in (t.cursors[0], t.cursors[-1])]
        return [*by_name, *(Sent(more, {"last-event-id": one}) for one in t.cursors)]
    pages = [*t.pages, t.ids["turn"], t.ids["file_id"], t.ids["message_batch"]]
    return [Sent(more | {row.value: one}) for one in dict.fromkeys([*t.cursors, *pages])]


def equal_body(row: Row, o: Things, t: Things) -> Sent:
    """The body of the other one's request, in another session of the sender: its turns have the other one's word."""
    own = {"session": f"{o.ids['session']}-equal"}
    match row.path:
        case "/v1/turns":
            return Sent(body={"message": t.line, **own, "create_session": True})
        case "/v1/messages" | "/v1/chat/completions" | "/v1/responses":
            return Sent(headers={"x-session-id": own["session"]}, body=equal_bodies(t.line)[row.path])
        case "/api/chat":
            return Sent(body=chat_of(o))
        case "/v1/turns/{turn}/steer":
            return Sent(body={"message": SIMULATED})
        case "/chat/stream" | "/ai/chat":
            return Sent(body=equal_bodies(t.line)[row.path])
    return Sent(body=ROWS[row.method, row.path].body)


def requests_of(row: Row, o: Things, t: Things) -> list[Sent]:
    """Returns the requests of a row: what is in the path is the sender's own."""
    if (build := SENDING.get(row.path, {}).get(row.value)) is not None and row.method == "POST":
        return build(o, t)
    if row.method != "POST":
        return in_query(row, o, t)
    sent = equal_body(row, o, t)
    first, key = t.posted.get(row.path, (t.cursors[0], t.ids["key"]))
    if row.value == "Idempotency-Key":
        return [sent._replace(headers={**sent.headers, "idempotency-key": key})]
    stream = {**sent.headers, "accept": "text/event-stream"}
    if row.value == "after":
        return [sent._replace(query={"after": one}, headers=stream) for one in (first, *t.cursors[:3])]
    assert row.value == "Last-Event-ID", row
    by_header = [sent._replace(headers={**stream, "last-event-id": one}) for one in (first, *t.cursors[:3])]
    return [*by_header, *(sent._replace(query={name: first}, headers=stream) for name in QUERY_NAMES)]


class Answer(NamedTuple):
    """A response, or as much of it as came in time."""

    status: int
    text: str
    """Headers and body."""


async def send(client: httpx2.AsyncClient, row: Row, sent: Sent, own: Things) -> Answer:
    """Sends one request of a row. Of a stream, reads for STREAM_S."""
    query = dict(sent.query)
    ids = own.ids | {"call": query.pop("{call}", own.ids["call"])}
    table = ROWS[row.method, row.path]
    more: Json = {"json": sent.body if sent.body is not None else table.body}
    if row.path == "/v1/files":
        more = {"files": {"file": ("a.txt", b"rivers")}, "data": {"purpose": "user_data"}}
    if sent.body is not None and "lines" in sent.body:
        lines = {"custom_id": "1", "url": "/v1/responses", "body": sent.body["lines"]}
        upload = {"file": ("a.jsonl", msgspec.json.encode(lines))}
        file = (await client.post("/v1/files", files=upload, data={"purpose": "batch"})).json()["id"]
        more = {"json": {"input_file_id": file, "endpoint": "/v1/responses", "completion_window": "24h"}}
    shown, status, is_read = "", 0, False
    path = row.path.format(**ids)
    with suppress(TimeoutError):
        async with (
            asyncio.timeout(20) as timeout,
            client.stream(row.method, path, params=query, headers=dict(sent.headers), **more) as answer,
        ):
            status, shown = answer.status_code, repr(answer.headers)
            async for text in answer.aiter_text():
                if table.is_endless and not is_read:
                    is_read = True
                    timeout.reschedule(asyncio.get_running_loop().time() + STREAM_S)
                shown += text
    return Answer(status, shown)


async def run_rows(
    client: httpx2.AsyncClient, rows: Iterable[Row], own: Things, theirs: Things
) -> tuple[list[tuple[Row, Answer]], list[str]]:
    """Sends the requests of all rows. Returns the answers, and a line for each that shows something or is no answer.

    An answer shows something if it has the other one's word, or an id that no request has sent.
    """
    todo = [(row, sent) for row in rows for sent in requests_of(row, own, theirs)]
    answers = await gather_limited(lambda one: send(client, *one, own), todo, AT_ONCE)
    said = repr(todo)
    unsent = {value for value in theirs.ids.values() if len(value) > 20 and value not in said}
    wrong = []
    for (row, sent), answer in zip(todo, answers, strict=True):
        # A request may have the other one's question, and its own answer then has the word.
        secrets = unsent if theirs.word in repr(sent) else {*unsent, theirs.word}
        if (shown := [one for one in secrets if one in answer.text]) or not 200 <= answer.status < 500:
            wrong.append(f"{row.route} {row.value} {sent} {answer.status} {shown} {answer.text[:500]}")
    return [(row, answer) for (row, _), answer in zip(todo, answers, strict=True)], wrong


async def require_unchanged(client: httpx2.AsyncClient, things: Things) -> None:
    """Raises AssertionError if a turn of the owner has been stopped, decided or continued."""
    ids = things.ids
    assert (await client.get(f"/v1/turns/{ids['running']}")).json()["outcome"] == "running"
    assert [one["call"] for one in (await client.get(f"/v1/sessions/{ids['session']}/calls")).json()["calls"]] == [
        ids["call"]
    ]
    assert len((await client.get(f"/v1/sessions/{ids['session']}/turns")).json()["data"]) == 2


def test_each_value_of_each_route_has_a_row() -> None:
    assert find_problems(TABLE, build_document(ROUTES, VERSION)) == []


def test_a_value_without_a_row_and_an_unknown_name_are_found() -> None:
    document = build_document(ROUTES, VERSION)
    operation = document["paths"]["/v1/sessions/{session}/turns"]["get"]
    for name in ("since", "turn"):
        operation["parameters"].append({"in": "query", "name": name, "schema": {"type": "string"}})
    assert find_problems(TABLE[1:], document) == [
        "`since` is new: add it to THINGS or PLAIN in tests/positions.py",
        "GET /v1/sessions/{session}/turns: `turn` has no row in tests/positions.csv",
        f"{TABLE[0].route}: `{TABLE[0].value}` has no row in tests/positions.csv",
    ]


@pytest.mark.rule("R147")
@pytest.mark.rule("S21")
@pytest.mark.timeout(300)
async def test_a_value_opens_what_its_row_says(people: People) -> None:
    """With one key for all sessions; as another private user; as another tenant."""
    await people.set_users("private")
    project = (await people.company.post("/v1/projects", json={"name": "Rivers"})).json()["id"]
    ada, eve = await make(people.company, "ada:", project), await make(people.company, "eve:")
    ann, bob, stranger = [await make(client) for client in (people.ann, people.bob, people.stranger)]
    held = [row for row in TABLE if row.session == NOTHING]
    for client, rows, own, owner, theirs in (
        (people.company, held, eve, people.company, ada),
        (people.bob, TABLE, bob, people.ann, ann),
        (people.stranger, TABLE, stranger, people.ann, ann),
    ):
        answers, wrong = await run_rows(client, rows, own, theirs)
        assert not wrong, "\n".join(wrong)
        assert len(answers) > len(rows)
        await require_unchanged(owner, theirs)
    # Of these, the credential is the only bound.
    eve = await make(people.company, "eve:")
    answers, _ = await run_rows(people.company, [row for row in TABLE if row.session == ALL], eve, ada)
    used = ("session_busy", "idempotency_key_reused")
    is_open = {
        (row.route, row.value)
        for row, answer in answers
        if answer.status < 300 or any(code in answer.text for code in used)
    }
    closed = [(row.route, row.value, answer) for row, answer in answers if (row.route, row.value) not in is_open]
    assert not closed, "\n".join(map(str, closed))
