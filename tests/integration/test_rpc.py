"""Request/reply between processes: replies, refusals with their codes, and no reply."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from tailrace.proto.errors import Refused, StoreBusy
from tailrace.proto.ids import Tenant, TurnId, new_id
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.rpc import Handler
from tailrace.proto.subjects import GENERATORS, PERSISTENCE, TurnKey
from tests.harness.until import until

TIMEOUT_S = 5


@pytest_asyncio.fixture
async def other(nats_url: str) -> AsyncIterator[Connection]:
    """The connection of another process."""
    connection = await Connection.open(nats_url, "other")
    yield connection
    await connection.close()


@pytest.fixture
def services(connection: Connection) -> Rpc:
    return Rpc(connection)


@pytest.fixture
def name() -> str:
    """A query that no other test answers."""
    return f"query-{new_id()}"


def answering(outcome: Callable[[Tenant, bytes], bytes]) -> Handler:
    async def answer(tenant: Tenant, question: bytes) -> bytes:
        return outcome(tenant, question)

    return answer


def failing(error: Exception) -> Handler:
    def fail(_: Tenant, __: bytes) -> bytes:
        raise error

    return answering(fail)


async def serve(connection: Connection, name: str, answer: Handler, role: str = PERSISTENCE) -> None:
    """Returns when the server knows who answers."""
    service = await Rpc(connection).serve(role, "1.0.0", {name: answer})
    # Not `flush()`: nats-py's PING overtakes a subscription that waits to be sent. A request does not.
    await connection.request(f"$SRV.PING.{role}.{service.id}", b"", timeout_s=TIMEOUT_S)


@pytest.mark.rule("R28")
async def test_an_answer_goes_to_who_asked_and_knows_whose_it_is(
    services: Rpc, other: Connection, tenant: Tenant, name: str
) -> None:
    """The tenant comes from the subject; question and answer are bytes that pass as they are."""
    await serve(other, name, answering(lambda who, what: who.encode() + b" asked " + what))
    answer = await services.request(tenant, name, b'{"turn":"1"}', timeout_s=TIMEOUT_S)
    assert answer == f'{tenant} asked {{"turn":"1"}}'.encode()


@pytest.mark.rule("R28")
@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (Refused("turn_not_found", "there is no such turn"), "turn_not_found", "there is no such turn"),
        (Refused("turn_not_found", "“héllo”\nworld 🌊"), "turn_not_found", "“héllo”\nworld 🌊"),
        (Refused("a_newer_code", "m"), "internal", "m"),
        (StoreBusy("locked"), "persistence_unavailable", "the history cannot be read at the moment: retry"),
        (RuntimeError("secret"), "internal", "the query failed: the logs have the traceback"),
    ],
)
async def test_a_refusal_goes_to_who_asked(
    services: Rpc, other: Connection, tenant: Tenant, name: str, error: Exception, code: str, message: str
) -> None:
    """Its code and sentence; what is ours alone becomes a sentence that tells nothing."""
    await serve(other, name, failing(error))
    with pytest.raises(Refused) as refused:
        await services.request(tenant, name, b"", timeout_s=TIMEOUT_S)
    assert (refused.value.code, refused.value.message) == (code, message)


@pytest.mark.rule("R28")
async def test_a_refusal_says_when_to_ask_again(services: Rpc, other: Connection, tenant: Tenant, name: str) -> None:
    """What the model wished for reaches whoever asked; without a wish there is none."""
    await serve(other, name, failing(Refused("backend_rate_limited", "slow down", retry_after_s=7.5)), GENERATORS)
    with pytest.raises(Refused) as refused:
        await services.request(tenant, name, b"", timeout_s=TIMEOUT_S, role=GENERATORS)
    assert (refused.value.code, refused.value.retry_after_s) == ("backend_rate_limited", 7.5)


@pytest.mark.rule("R28")
async def test_nobody_who_answers_is_persistence_that_is_away(services: Rpc, tenant: Tenant, name: str) -> None:
    """At once, and with a time after which to try again."""
    with pytest.raises(Refused) as refused:
        await services.request(tenant, name, b"", timeout_s=TIMEOUT_S)
    assert (refused.value.code, refused.value.retry_after_s) == ("persistence_unavailable", 2)


@pytest.mark.rule("R36")
async def test_whoever_does_not_answer_is_away_by_its_own_name(
    services: Rpc, other: Connection, tenant: Tenant, name: str
) -> None:
    """Nobody there, or somebody with trouble of its own: a generator's absence is not told as persistence's."""
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            await services.request(tenant, name, b"", timeout_s=TIMEOUT_S, role=GENERATORS)
        assert (refused.value.code, refused.value.retry_after_s) == ("generators_unavailable", 2)
        await serve(other, name, failing(StoreBusy("locked")), GENERATORS)


@pytest.mark.rule("R28")
async def test_a_question_that_waits_keeps_no_other_waiting(
    services: Rpc, other: Connection, tenant: Tenant, name: str
) -> None:
    """The second is answered while the first is not."""
    is_asked, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(_: Tenant, question: bytes) -> bytes:
        if question == b"slow":
            is_asked.set()
            await may_answer.wait()
        return question

    await serve(other, name, slow)
    waiting = asyncio.create_task(services.request(tenant, name, b"slow", timeout_s=TIMEOUT_S))
    await is_asked.wait()
    assert await services.request(tenant, name, b"quick", timeout_s=TIMEOUT_S) == b"quick"
    assert not waiting.done()
    may_answer.set()
    assert await waiting == b"slow"


@pytest.mark.rule("R29")
async def test_a_role_reports_how_it_is(services: Rpc, other: Connection, name: str) -> None:
    """The first process of the role that answers; None when there is none."""
    assert await services.health(name, timeout_s=TIMEOUT_S) is None
    await Rpc(other).serve_health(name, lambda: b'{"ok":true}')
    assert await until(lambda: services.health(name, timeout_s=TIMEOUT_S)) == b'{"ok":true}'


@pytest.mark.rule("R30")
async def test_a_turn_that_any_gateway_reads_has_readers(services: Rpc, other: Connection, tenant: Tenant) -> None:
    """Who reads it answers; who does not is silent, and silence is a no."""
    read, unread = (TurnKey(tenant, TurnId(new_id())) for _ in range(2))
    assert not await services.has_readers(read, timeout_s=0.25)
    await Rpc(other).announce_readers(lambda key: key == read)
    assert await until(lambda: services.has_readers(read, timeout_s=TIMEOUT_S))
    assert not await services.has_readers(unread, timeout_s=0.25)
