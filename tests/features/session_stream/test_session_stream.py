"""`GET /v1/sessions/{session}/events`: one stream for all turns of a session."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.features.session_stream import gateway as session_stream
from tailrace.gateway.history_client import HistoryClient
from tailrace.proto import subjects
from tailrace.proto.errors import Refused
from tailrace.proto.ids import Tenant, TurnId, TurnKey
from tailrace.proto.nats import TurnLog
from tailrace.proto.nats.replay import WOKEN_WAIT_S
from tailrace.proto.nats.stream_leader import Leader, StoredMessage
from tests.harness.processes import Process
from tests.harness.requests import post
from tests.harness.sse_parser import EventStream
from tests.harness.until import until
from tests.integration.conftest import Gateway

ENDS = ("done", "error")


class Page:
    """A page that shows a session: it reads one stream, and resumes it after each cut."""

    def __init__(self, client: httpx2.AsyncClient, session: str) -> None:
        self.client = client
        self.path = f"/v1/sessions/{session}/events"
        self.parameters: dict[str, str] = {}
        self.cursor = ""
        self.events: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        self.begins: list[list[str]] = []
        self.exists: list[bool] = []

    def has_ended(self, turn: str) -> bool:
        return any(event["type"] in ENDS for event in self.events[turn])

    async def read(self, most: int = 10**6, *turns: str) -> None:
        """Reads over one connection, at most so many events, or until these turns have ended."""
        rest = b""
        headers = {"last-event-id": self.cursor} if self.cursor else {}
        async with self.client.stream("GET", self.path, params=self.parameters, headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            async for received in response.aiter_raw():
                *blocks, rest = (rest + received).split(b"\n\n")
                for block in blocks:
                    fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
                    event = msgspec.json.decode(fields[b"data"])
                    self.cursor = fields.get(b"id", b"").decode() or self.cursor
                    if event["type"] == "session":
                        self.begins.append(event["running"])
                        self.exists.append(event["exists"])
                    else:
                        self.events[event["turn"]].append(event)
                        most -= 1
                    if most == 0 or (turns and all(map(self.has_ended, turns))):
                        return


async def own_events(gateway: Gateway, turn: str) -> list[dict[str, Any]]:
    """Returns the events of the turn's own stream."""
    answer = await gateway.client.get(f"/v1/turns/{turn}/events")
    return [{**msgspec.json.decode(sent.data), "turn": turn} for sent in EventStream().feed(answer.content)]


async def test_each_event_of_each_turn_comes_once_over_cuts(
    gateway: Gateway, persistence: Process, generator: Process
) -> None:
    """Of turns that run at once, that begin while the page reads, and that end while it is disconnected."""
    first = await post(gateway, message="#sim words=60 rate=40")
    session, branch = first["session"], {"session": first["session"], "parent": None, "on_busy": "branch"}
    second = await post(gateway, message="#sim words=60 rate=40", **branch)
    page = Page(gateway.client, session)
    await page.read(7)
    assert {*page.begins[0]} == {first["turn"], second["turn"]}
    unseen = await post(gateway, message="#sim words=3 rate=0", **branch)
    await own_events(gateway, unseen["turn"])
    queued = await post(gateway, message="#sim words=5 rate=0", session=session, parent=first["turn"], on_busy="queue")
    other = await post(gateway, message="#sim words=1 rate=0")
    turns = [one["turn"] for one in (first, second, unseen, queued)]

    async def read_more() -> bool:
        await page.read(7, *turns)
        return all(map(page.has_ended, turns))

    await until(read_more, deadline_s=60)
    assert {turn: page.events[turn] for turn in turns} == {turn: await own_events(gateway, turn) for turn in turns}
    assert other["turn"] not in page.events
    # A turn that begins while the page waits, although none runs.
    last: list[str] = []

    async def ask_when_read() -> None:
        await until(lambda: len(page.begins) > count)
        last.append((await post(gateway, message="#sim words=3 rate=0", **branch))["turn"])

    count = len(page.begins)
    await asyncio.gather(page.read(2), ask_when_read())
    assert page.events[last[0]] == (await own_events(gateway, last[0]))[:2]


async def test_ended_turns_come_whole_over_a_cut_after_every_few_events(
    gateway: Gateway, persistence: Process, generator: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with many events, then more turns than are followed at once. Each `id:` that was sent is accepted."""
    monkeypatch.setattr(session_stream, "FOLLOWED_MAX", 8)
    first = await post(gateway, message="#sim words=40 rate=400")
    own = {first["turn"]: await own_events(gateway, first["turn"])}
    page = Page(gateway.client, first["session"])
    page.cursor = "0"

    async def read_more() -> bool:
        await page.read(5, *own)
        return all(map(page.has_ended, own))

    await until(read_more, deadline_s=20)
    branch = {"session": first["session"], "parent": None, "on_busy": "branch"}
    more = await asyncio.gather(*(post(gateway, message="#sim words=3 rate=0", **branch) for _ in range(14)))
    own |= {one["turn"]: await own_events(gateway, one["turn"]) for one in more}
    await until(read_more, deadline_s=30)
    assert {turn: page.events[turn] for turn in own} == own


async def test_a_turn_that_has_left_the_log_comes_when_persistence_answers_again(
    gateway: Gateway, tenant: Tenant, system_log: TurnLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream ends, and its id is before the turn."""
    first = await post(gateway, message="#sim words=3 rate=0")
    await own_events(gateway, first["turn"])
    page = Page(gateway.client, first["session"])
    page.cursor = "0"
    # Persistence answers after it has recorded the turn's end.
    (recorded,) = (await gateway.client.get(f"/v1/sessions/{first['session']}/turns")).json()["turns"]
    assert recorded["outcome"] == "completed"
    await system_log.purge(TurnKey(tenant, TurnId(first["turn"])))

    async def refuse(*_: object) -> None:
        raise Refused("persistence_unavailable", "persistence is restarted")

    with monkeypatch.context() as patched:
        patched.setattr(HistoryClient, "read_past_turn", refuse)
        async with asyncio.timeout(10):
            await page.read()
    assert page.events == {}
    await page.read(10**6, first["turn"])
    assert [event["type"] for event in page.events[first["turn"]]] == ["reset", "delta", "done"]


async def test_a_wrong_cursor_is_refused_and_an_unknown_session_is_404(gateway: Gateway, persistence: Process) -> None:
    session = (await gateway.client.post("/v1/sessions", json={})).json()["session"]
    for cursor in ("x", "1.2", "1.2-3-4", "9" * 19, "1." + ".".join(["1-1"] * 300)):
        answer = await gateway.client.get(f"/v1/sessions/{session}/events?after={cursor}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid")
        answer = await gateway.client.get(f"/v1/sessions/{session}/events?lastEventId={cursor}")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "cursor_invalid")
    answer = await gateway.client.get("/v1/sessions/unknown/events")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "session_not_found")


@pytest.mark.rule("S21")
@pytest.mark.rule("R147")
@pytest.mark.parametrize("words", [3, 1_000])
async def test_a_position_in_another_session_is_ignored_like_that_of_a_deleted_turn(
    gateway: Gateway, persistence: Process, generator: Process, words: int
) -> None:
    """With the same bytes and after the same time, whether the other session's turn has ended or still runs."""
    other, deleted, own = [
        await post(gateway, message=f"#sim words={count} rate=20 tag=secret") for count in (words, 3, 3)
    ]
    positions = []
    for turn in (other, deleted, own):
        async with gateway.client.stream("GET", f"/v1/turns/{turn['turn']}/events") as response:
            positions.append(int((await anext(response.aiter_text())).split("id: ")[1].split()[0]))
    await own_events(gateway, own["turn"])
    await own_events(gateway, deleted["turn"])
    last = (await gateway.client.get(f"/v1/turns/{own['turn']}")).json()["cursor"]
    await gateway.client.delete(f"/v1/turns/{deleted['turn']}")
    path, received, times = f"/v1/sessions/{own['session']}/events", [], []
    for seq in positions[:2]:
        began = asyncio.get_running_loop().time()
        shown = b""
        with suppress(TimeoutError):
            async with (
                asyncio.timeout(1),
                gateway.client.stream("GET", path, headers={"last-event-id": f"{last}.{seq}-{seq}"}) as response,
            ):
                times.append(asyncio.get_running_loop().time() - began)
                async for part in response.aiter_raw():
                    shown += part
        # Behind the `retry:` line, whose time is random.
        received.append(shown.partition(b"\n")[2])
    begin = {"type": "session", "session": own["session"], "running": [], "exists": True}
    assert received == [b"data: %b\nid: %d\n\n" % (msgspec.json.encode(begin), last)] * 2
    assert min(times) > WOKEN_WAIT_S


@pytest.mark.rule("R147")
async def test_each_request_in_a_cursor_is_read_once(
    gateway: Gateway, tenant: Tenant, persistence: Process, generator: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request may have megabytes, and a cursor that a client makes lists 256 positions."""
    own = await post(gateway, message="#sim words=3 rate=0")
    (request, *_, last), read, first = await own_seqs(gateway, own["turn"]), [], Leader.first

    async def note(leader: Leader, subject: str, seq: int) -> StoredMessage | None:
        read.append((subject, seq))
        return await first(leader, subject, seq)

    monkeypatch.setattr(Leader, "first", note)
    path, cursor = f"/v1/sessions/{own['session']}/events", f"{last}{f'.{request}-{last}' * 200}"
    async with gateway.client.stream("GET", path, headers={"last-event-id": cursor}) as response:
        await anext(response.aiter_raw())
    assert read == [(subjects.requests_of_tenant(tenant), request)]


async def own_seqs(gateway: Gateway, turn: str) -> list[int]:
    """Returns the sequences of a turn's events, once it has ended."""
    events = (await gateway.client.get(f"/v1/turns/{turn}/events")).text
    return [int(line.removeprefix("id: ")) for line in events.splitlines() if line.startswith("id: ")]


async def test_a_stream_waits_for_a_session_that_does_not_exist_yet(
    gateway: Gateway, persistence: Process, generator: Process
) -> None:
    """It has each event of the first turn once, also of a turn that has begun and ended before a reconnect."""
    waiting, late = (Page(gateway.client, "begins-later") for _ in range(2))
    waiting.parameters = late.parameters = {"wait": "true"}
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            await late.read()
    assert (late.begins, late.exists, late.cursor) == ([[]], [False], "0")
    asked: list[str] = []

    async def ask_when_read() -> None:
        await until(lambda: bool(waiting.begins))
        new = {"session": "begins-later", "create_session": True}
        asked.append((await post(gateway, message="#sim words=5 rate=50", **new))["turn"])

    await asyncio.gather(waiting.read(3), ask_when_read())
    (turn,) = asked
    own = await own_events(gateway, turn)
    for page in (waiting, late):
        await page.read(10**6, turn)
        assert page.events == {turn: own}
        assert page.exists == [False, True]


async def test_a_stream_waits_for_no_session_that_cannot_exist(gateway: Gateway, persistence: Process) -> None:
    """Nor does it wait without `wait=true`, which is for new chats."""
    for session, query, status in (
        ("a%20b", "?wait=true", 400),
        ("stats", "?wait=true", 400),
        ("new", "?wait=1", 400),
        ("new", "?wait=false", 404),
    ):
        answer = await gateway.client.get(f"/v1/sessions/{session}/events{query}")
        assert answer.status_code == status, answer.text


async def test_the_timeline_says_how_a_session_stream_was_closed(
    gateway: Gateway, persistence: Process, generator: Process
) -> None:
    running = await post(gateway, message="#sim words=300 rate=100")
    await Page(gateway.client, running["session"]).read(3)

    async def list_endings() -> list[str]:
        found = (await gateway.client.get(f"/v1/turns/{running['turn']}/timeline")).json()
        return [one["report"]["ending"] for one in found["readers"] if one["report"]["ending"] != "open"]

    assert await until(list_endings) == ["disconnected"]
