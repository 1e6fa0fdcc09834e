"""Every way in which an answer of the model can be less than one (FAULTS F22): none of them is taken for a success.

The simulated Claude answers well; `tests/harness/faulty_upstream.py` stands before it and spoils what it says.
"""

import json
from collections.abc import AsyncIterator
from itertools import takewhile

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.simulated_claude.server import serving
from tailrace.proto.nats import TurnLog
from tests.harness.faulty_upstream import HEAD, Break, Broken, breaking
from tests.harness.generator_in_loop import ask, ended, modes, words, working

WORDS = 12
OVERLOADED = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'


def kind(event: bytes) -> str:
    data = next(line for line in event.splitlines() if line.startswith(b"data:"))
    return str(json.loads(data.removeprefix(b"data:"))["type"])


def half(events: list[bytes]) -> list[bytes]:
    """As far as the middle of its text."""
    return events[: len(events) // 2]


def told(events: list[bytes], *, is_reset: bool = False) -> Broken:
    return Broken(HEAD + b"".join(events), is_reset)


def without(events: list[bytes], left_out: str) -> list[bytes]:
    return [event for event in events if kind(event) != left_out]


def twice(events: list[bytes], repeated: str) -> list[bytes]:
    return [copy for event in events for copy in [event] * (1 + (kind(event) == repeated))]


def only(events: list[bytes], wanted: str) -> list[bytes]:
    return [event for event in events if kind(event) == wanted]


# The first words of it come, and then something that no whole answer has.
BREAKS: dict[str, Break] = {
    "reset": lambda events: told(half(events), is_reset=True),
    "ended within its text": lambda events: told(half(events)),
    "ended within an event": lambda events: told([*half(events), events[len(events) // 2][:30]]),
    "ended before message_delta": lambda events: told(
        list(takewhile(lambda one: kind(one) != "message_delta", events))
    ),
    "not JSON": lambda events: told([*half(events), b'event: content_block_delta\ndata: {"type":"content_\n\n']),
    "an error": lambda events: told([*half(events), OVERLOADED]),
    "message_stop within its text": lambda events: told([*half(events), *only(events, "message_stop")]),
    "message_stop within a block": lambda events: told(without(events, "content_block_stop")),
    "message_stop without message_delta": lambda events: told(without(events, "message_delta")),
    "begun twice": lambda events: told([*half(events), events[0], *events[len(events) // 2 :]]),
    "a block begun twice": lambda events: told(twice(events, "content_block_start")),
    "a block ended twice": lambda events: told(twice(events, "content_block_stop")),
}
# Nothing of them is an answer, so another call is made in the same attempt.
NOTHING: dict[str, Break] = {
    "empty": lambda _: Broken(HEAD),
    "no beginning": lambda events: told(events[1:]),
    "a delta without its block": lambda events: told(without(events, "content_block_start")),
    "only its end": lambda events: told(only(events, "message_stop")),
    "a page": lambda _: Broken(HEAD.replace(b"text/event-stream", b"text/html") + b"<html>Please log in</html>"),
}
# All of the text has come before it, so that there is nothing to spoil in a second answer.
LATE = ("a block ended twice", "message_stop within a block")
WHOLE: dict[str, Break] = {
    "ended twice": lambda events: told(twice(events, "message_stop")),
    "more after its end": lambda events: told([*events, *half(events)]),
    "reset after its end": lambda events: told(events, is_reset=True),
}


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of a simulated Claude that nobody else calls."""
    async with serving() as url:
        yield url


@pytest.mark.rule("F22")
@pytest.mark.parametrize("how", [*BREAKS, *NOTHING])
async def test_what_is_not_whole_is_asked_for_again(
    own_server: NatsServer, own_log: TurnLog, claude: str, how: str
) -> None:
    """One call more, and the text as if nothing had happened."""
    async with (
        breaking(claude, (BREAKS | NOTHING)[how]) as between,
        working(own_server.url, between.url, stall_timeout_s=5),
    ):
        turn = await ended(own_log, await ask(own_log, f"words={WORDS} rate=0"))
    assert (turn.text, turn.outcome, turn.stop.stop_reason) == (words(WORDS), "completed", "end_turn")
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert between.calls == 2


@pytest.mark.rule("F22")
@pytest.mark.rule("R6")
@pytest.mark.parametrize("how", [how for how in (*BREAKS, *NOTHING) if how not in LATE])
async def test_what_is_never_whole_is_no_success(
    own_server: NatsServer, own_log: TurnLog, claude: str, how: str
) -> None:
    """However often: it has failed, and no word of what came is lost or there twice."""
    spoil = (BREAKS | NOTHING)[how]
    async with (
        breaking(claude, spoil, times=99) as between,
        working(own_server.url, between.url, stall_timeout_s=5, attempts_max=2),
    ):
        turn = await ended(own_log, await ask(own_log, f"words={WORDS} rate=0"))
    assert turn.outcome == "failed"
    assert words(WORDS).startswith(turn.text)
    assert between.calls > 1


async def test_what_lacks_its_last_event_alone_is_whole(own_server: NatsServer, own_log: TurnLog, claude: str) -> None:
    """`message_delta` has told why it stopped: nobody asks for more than that once it is stored."""

    def spoil(events: list[bytes]) -> Broken:
        return told(without(events, "message_stop"))

    async with breaking(claude, spoil, times=99) as between, working(own_server.url, between.url, stall_timeout_s=5):
        turn = await ended(own_log, await ask(own_log, f"words={WORDS} rate=0"))
    assert (turn.text, turn.outcome, turn.stop.stop_reason) == (words(WORDS), "completed", "end_turn")
    assert between.calls <= 2


@pytest.mark.parametrize("how", WHOLE)
async def test_what_comes_after_its_end_spoils_no_answer(
    own_server: NatsServer, own_log: TurnLog, claude: str, how: str
) -> None:
    async with breaking(claude, WHOLE[how]) as between, working(own_server.url, between.url, stall_timeout_s=5):
        key = await ask(own_log, f"words={WORDS} rate=0")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, between.calls) == (words(WORDS), "completed", 1)
    assert await modes(own_log, key) == ["fresh"]
