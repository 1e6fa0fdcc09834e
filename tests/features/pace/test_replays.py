"""Replays at a pace: the same bytes as without it, live while the turn runs, with heartbeats until an entry is due."""

from typing import Any

from tailrace.proto.ids import new_id
from tests.harness.displayed_text import SAYS
from tests.harness.readers import read
from tests.harness.sse_parser import EventStream, SseEvent, without_retry
from tests.harness.system import System
from tests.integration.conftest import Gateway, NewGateway

# Equal requests are one turn, so that two streams have the same answer.
AUTO = {"idempotency-key": "auto"}


def question(line: str) -> dict[str, Any]:
    """Returns the body of a new question."""
    return {"message": f"#sim {line}\n{new_id()}"}


async def post_turn(gateway: Gateway, body: dict[str, Any]) -> str:
    answer = await gateway.client.post("/v1/turns", json=body)
    assert answer.status_code == 202, answer.text
    turn: str = answer.json()["turn"]
    return turn


async def slow_turn(gateway: Gateway) -> str:
    """Returns a turn that was written over half a second."""
    turn = await post_turn(gateway, question("words=5 rate=10"))
    await read(gateway.client, turn)
    return turn


async def test_a_paced_stream_has_the_same_bytes_in_every_dialect(gateway: Gateway) -> None:
    turn = await slow_turn(gateway)
    for dialect in SAYS:
        at_once, paced = [
            await gateway.client.get(f"/v1/turns/{turn}/events?dialect={dialect}{pace}") for pace in ("", "&pace=20")
        ]
        assert without_retry(paced.content) == without_retry(at_once.content), dialect


async def test_a_paced_stream_sends_heartbeats_until_the_next_entry_is_due(
    system: System, generator: object, new_gateway: NewGateway
) -> None:
    """A reader that disconnects and resumes gets exactly the rest."""
    gateway = await new_gateway(system.nats_url, heartbeat_s=0.1)
    turn = await slow_turn(gateway)
    stream = EventStream()
    events: list[SseEvent] = []
    async with gateway.client.stream("GET", f"/v1/turns/{turn}/events?pace=0.001") as response:
        async for received in response.aiter_raw():
            events += stream.feed(received)
            if len(stream.comments) >= 3:
                break
    assert [event.data for event in events if '"delta"' in event.data] == []
    assert events[-1].id is not None
    whole = await read(gateway.client, turn)
    rest = await gateway.client.get(f"/v1/turns/{turn}/events?pace=999", headers={"last-event-id": str(events[-1].id)})
    received = b"".join(event.raw for event in events) + without_retry(rest.content)
    assert received == without_retry(b"".join(frame.sent for frame in whole.frames))


async def test_a_paced_stream_of_a_running_turn_is_live(gateway: Gateway) -> None:
    turn = await post_turn(gateway, question("words=5 rate=20"))
    paced = await gateway.client.get(f"/v1/turns/{turn}/events?dialect=text&pace=1")
    assert paced.text == "w000000 w000001 w000002 w000003 w000004"


async def test_a_streamed_post_accepts_a_pace(gateway: Gateway) -> None:
    """In the native protocol and in others."""
    body = question("words=5 rate=10")
    answers = [
        await gateway.client.post(
            f"/v1/turns?dialect=text{pace}", json=body, headers=AUTO | {"accept": "text/event-stream"}
        )
        for pace in ("", "&pace=20")
    ]
    assert [answer.text for answer in answers] == ["w000000 w000001 w000002 w000003 w000004"] * 2
    assert len({answer.headers["tailrace-turn"] for answer in answers}) == 1
    chat = {"model": "claude-haiku-5-5", "max_tokens": 9, "stream": True}
    chat |= {"messages": [{"role": "user", "content": body["message"]}]}
    streams = [await gateway.client.post(f"/v1/messages{pace}", json=chat, headers=AUTO) for pace in ("", "?pace=20")]
    assert (await gateway.client.post("/v1/messages?pace=0", json=chat)).status_code == 400
    assert streams[0].content == streams[1].content
