"""append: what it requests after each answer. What a server really answers is tested in tests/integration."""

from itertools import pairwise

import pytest

from tailrace.proto.chain import Chain
from tailrace.proto.entries import MESSAGE_BATCHES, Attempt, Entry, Stored
from tailrace.proto.errors import FenceLost
from tailrace.proto.ids import Seq, Tenant, TurnId
from tailrace.proto.nats.append import append
from tailrace.proto.nats.log_server import PublishUnclear
from tailrace.proto.subjects import TurnKey
from tests.harness.scripted_log import NOTHING, ScriptedServer, page
from tests.harness.turn_builder import NOON, says
from tests.harness.virtual_time import run

KEY = TurnKey(Tenant("t"), TurnId("turn-1"))
CHAIN = Chain(Seq(7), 1)
ENTRY = says(CHAIN, "a")
STORED = Seq(8)
REFUSED = PublishUnclear("10071")
NO_ANSWER = PublishUnclear("no answer", is_answered=False)


def appended(server: ScriptedServer, entry: Entry = ENTRY) -> Chain:
    return run(append(server, KEY, CHAIN, entry, timeout_s=30))


def taken(backend: str, generator: str) -> Attempt:
    return Attempt(prev=CHAIN.last, attempt=2, generator=generator, backend=backend, mode="fresh")


def test_an_acknowledged_entry_costs_one_request() -> None:
    """The fence of the first publish is the chain's last sequence."""
    server = ScriptedServer(publish=[STORED])
    assert appended(server) == Chain(STORED, 1)
    assert [request.arguments for request in server.requests] == [(ENTRY, CHAIN.last)]


def test_a_refusal_without_a_rival_asks_the_leader_whether_the_turn_exists() -> None:
    """Appends to a purged turn are refused for ever, and no entry says why."""
    server = ScriptedServer(publish=[REFUSED, STORED], read=[NOTHING], last_seq=[Seq(1)])
    appended(server)
    assert server.names == ["publish", "read", "last_seq", "publish"]


def test_without_a_leader_the_leader_is_not_asked() -> None:
    """The question would wait two seconds for its time-out, while another server may become the leader."""
    server = ScriptedServer(publish=[NO_ANSWER, STORED], read=[NOTHING])
    appended(server)
    assert server.names == ["publish", "read", "publish"]


def test_without_a_leader_publishes_become_rarer_up_to_two_a_second() -> None:
    """A thousand turns that publish twenty times a second would keep the servers from electing a leader."""
    server = ScriptedServer(publish=[*6 * [NO_ANSWER], STORED], read=[NOTHING])
    appended(server)
    waits = [round(after - before, 3) for before, after in pairwise(server.times("publish"))]
    assert waits == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


@pytest.mark.rule("R13")
@pytest.mark.parametrize("is_last", [True, False])
def test_a_stored_attempt_with_followers_is_an_earlier_one_of_this_process(*, is_last: bool) -> None:
    """A generator that planned from an old read must not make its call a second time."""
    attempt = taken("anthropic", "g-1")
    there, following = Stored(STORED, NOON, attempt), Stored(Seq(9), NOON, says(Chain(STORED, 2), "a"))
    tail = page(there, following) if is_last else page(there, is_last=False)
    with pytest.raises(FenceLost):
        appended(ScriptedServer(publish=[REFUSED], read=[tail]), attempt)


@pytest.mark.rule("R13")
def test_a_stored_attempt_of_a_message_batch_counts_as_appended() -> None:
    """A generator that takes a message batch over writes its answers again from the first entry on."""
    attempt = taken(MESSAGE_BATCHES, "msgbatch_1")
    there, following = Stored(STORED, NOON, attempt), Stored(Seq(9), NOON, says(Chain(STORED, 2), "a"))
    server = ScriptedServer(publish=[REFUSED], read=[page(there, following)])
    assert appended(server, attempt) == Chain(STORED, 2)
