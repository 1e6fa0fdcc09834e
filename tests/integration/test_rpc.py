"""Request/reply between processes: replies, refusals with their codes, and no reply."""

import asyncio
import gc
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import httpx2
import pytest
import pytest_asyncio
from nats.aio.msg import Msg
from structlog.testing import capture_logs

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto import subjects
from tailrace.proto.errors import Refused, StoreBusy
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import Connection, Rpc
from tailrace.proto.nats.rpc import PART_HEADERS_BYTES_MAX, QUERIES_MAX, Handler, _PartedReplies
from tailrace.proto.subjects import GENERATORS, PERSISTENCE
from tests.harness.freeze import freeze
from tests.harness.proxy import Proxy
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
    """The name of a query that no other test serves."""
    return f"query-{new_id()}"


def answer_with(outcome: Callable[[Tenant, bytes], bytes]) -> Handler:
    async def answer(tenant: Tenant, question: bytes) -> bytes:
        return outcome(tenant, question)

    return answer


def fail_with(error: Exception) -> Handler:
    def fail(_: Tenant, __: bytes) -> bytes:
        raise error

    return answer_with(fail)


async def serve(connection: Connection, name: str, answer: Handler, role: str = PERSISTENCE) -> None:
    await Rpc(connection).serve(role, "1.0.0", {name: answer})


async def test_serve_returns_when_the_server_has_the_subscriptions(
    nats_server: NatsServer, connection: Connection, name: str
) -> None:
    """A process is ready then: its first query is not refused. The look blocks the event loop, which sends nothing."""
    await serve(connection, name, answer_with(lambda _, question: question))
    connections = f"http://127.0.0.1:{nats_server.spec.monitor_port}/connz?subs=1"
    assert subjects.every_query(name) in httpx2.get(connections, trust_env=False).text


@pytest.mark.rule("R28")
@pytest.mark.parametrize(
    ("error", "code", "message", "retry_after_s"),
    [
        (Refused("turn_not_found", "“héllo”\nworld 🌊"), "turn_not_found", "“héllo”\nworld 🌊", None),
        (Refused("backend_rate_limited", "slow down", retry_after_s=7.5), "backend_rate_limited", "slow down", 7.5),
        (Refused("a_newer_code", "m"), "internal", "m", None),
        (StoreBusy("locked"), "persistence_unavailable", "sessions and history cannot be read at the moment: retry", 2),
        (RuntimeError("secret"), "internal", "the query failed: the logs have the traceback", None),
    ],
)
async def test_a_refusal_has_a_code_a_message_and_the_time_after_which_to_retry(
    services: Rpc,
    other: Connection,
    tenant: Tenant,
    name: str,
    error: Exception,
    code: str,
    message: str,
    retry_after_s: float | None,
) -> None:
    """Internal errors get a message without details."""
    await serve(other, name, fail_with(error))
    with pytest.raises(Refused) as refused:
        await services.request(tenant, name, b"", timeout_s=TIMEOUT_S)
    assert (refused.value.code, refused.value.message, refused.value.retry_after_s) == (code, message, retry_after_s)


@pytest.mark.rule("R28")
async def test_a_refusal_has_the_details_that_the_api_has_sent(
    services: Rpc, other: Connection, tenant: Tenant, name: str
) -> None:
    """From them, the vendor's SDK makes its own error classes."""
    details = {"error_code": "file_not_found", "file": "é"}
    await serve(other, name, fail_with(Refused("backend_refused_request", "no such file", details=details)))
    with pytest.raises(Refused) as refused:
        await services.request(tenant, name, b"", timeout_s=TIMEOUT_S)
    assert refused.value.details == details


@pytest.mark.rule("R36")
async def test_an_unavailable_role_is_named_in_the_error_code(
    services: Rpc, other: Connection, tenant: Tenant, name: str
) -> None:
    """Without a responder, and with one that fails."""
    for _ in range(2):
        with pytest.raises(Refused) as refused:
            await services.request(tenant, name, b"", timeout_s=TIMEOUT_S, role=GENERATORS)
        assert (refused.value.code, refused.value.retry_after_s) == ("generators_unavailable", 2)
        await serve(other, name, fail_with(StoreBusy("locked")), GENERATORS)


async def test_the_cause_of_failed_queries_is_logged_once_until_one_succeeds(
    services: Rpc, other: Connection, tenant: Tenant, name: str
) -> None:
    async def answer(_: Tenant, question: bytes) -> bytes:
        if question == b"fail":
            raise StoreBusy("locked")
        return question

    await serve(other, name, answer)
    with capture_logs() as logged:
        for question in (b"fail", b"fail", b"succeed", b"fail"):
            with suppress(Refused):
                await services.request(tenant, name, question, timeout_s=TIMEOUT_S)
    assert [line["event"] for line in logged] == ["query failed"] * 2


@pytest.fixture
def part_bytes(connection: Connection) -> int:
    """The most bytes of one part of a reply."""
    return connection.client.max_payload - PART_HEADERS_BYTES_MAX


@pytest.mark.rule("R28")
@pytest.mark.parametrize(("parts", "more"), [(1, 1), (2, 0), (3, -1)])
async def test_a_reply_that_is_larger_than_one_message_comes_in_parts(
    services: Rpc, other: Connection, tenant: Tenant, name: str, part_bytes: int, parts: int, more: int
) -> None:
    """Each part is requested by itself. The handler runs once for the first message, and once for the parts."""
    answer, calls = os.urandom(parts * part_bytes + more), list[bytes]()

    def reply(_: Tenant, question: bytes) -> bytes:
        calls.append(question)
        return answer

    await serve(other, name, answer_with(reply))
    first, second = [services.request(tenant, name, question, timeout_s=TIMEOUT_S) for question in (b"a", b"b")]
    assert await first == answer
    assert calls == [b"a"] * (2 if len(answer) > part_bytes + PART_HEADERS_BYTES_MAX else 1)
    assert await second == answer
    # Two large replies at once replace each other, and are made again.
    assert (
        await asyncio.gather(*(services.request(tenant, name, b"%d" % n, timeout_s=TIMEOUT_S) for n in range(3)))
        == [answer] * 3
    )


@pytest.mark.rule("R28")
async def test_a_reply_that_changes_between_its_parts_is_requested_again(
    services: Rpc, other: Connection, tenant: Tenant, name: str, part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reply is a mixture of two. The handler is asked for each part, as by another process of the role."""
    monkeypatch.setattr(_PartedReplies, "_keep", lambda *_: None)
    letters = iter("abcc")
    await serve(other, name, answer_with(lambda *_: next(letters, "c").encode() * (part_bytes + 2000)))
    assert await services.request(tenant, name, b"", timeout_s=TIMEOUT_S) == b"c" * (part_bytes + 2000)
    counter = itertools.count()
    await serve(other, f"{name}-2", answer_with(lambda *_: str(next(counter) % 10).encode() * (part_bytes + 2000)))
    with pytest.raises(Refused) as refused:
        await services.request(tenant, f"{name}-2", b"", timeout_s=TIMEOUT_S)
    assert (refused.value.code, refused.value.retry_after_s) == ("persistence_unavailable", 2)


@pytest.mark.rule("R28")
async def test_a_waiting_query_delays_no_other(services: Rpc, other: Connection, tenant: Tenant, name: str) -> None:
    """A NATS subscription handles one message at a time, so each query runs in a task of its own."""
    is_begun, may_answer = asyncio.Event(), asyncio.Event()

    async def slow(_: Tenant, question: bytes) -> bytes:
        if question == b"slow":
            is_begun.set()
            await may_answer.wait()
        return question

    await serve(other, name, slow)
    waiting = asyncio.create_task(services.request(tenant, name, b"slow", timeout_s=TIMEOUT_S))
    await is_begun.wait()
    assert await services.request(tenant, name, b"quick", timeout_s=TIMEOUT_S) == b"quick"
    assert not waiting.done()
    may_answer.set()
    assert await waiting == b"slow"


async def test_the_queries_of_one_tenant_leave_room_for_others(
    services: Rpc, other: Connection, tenant: Tenant, name: str
) -> None:
    may_answer = asyncio.Event()

    async def answer(sender: Tenant, _: bytes) -> bytes:
        if sender == tenant:
            await may_answer.wait()
        return b"answered"

    await serve(other, name, answer)
    queries = [services.request(tenant, name, b"", timeout_s=TIMEOUT_S) for _ in range(QUERIES_MAX)]
    waiting = asyncio.gather(*queries, return_exceptions=True)
    await asyncio.sleep(0)
    assert await services.request(Tenant("another"), name, b"", timeout_s=TIMEOUT_S) == b"answered"
    may_answer.set()
    assert (await waiting).count(b"answered") == QUERIES_MAX // 2


async def test_a_process_stops_although_nats_server_does_not_answer(
    own_server: NatsServer, own_connection: Connection, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py waits ten seconds for an answer, and then raises an error."""
    monkeypatch.setattr("tailrace.proto.nats.rpc.STOP_S_MAX", 0.5)
    endpoints = await Rpc(own_connection).serve(name, "1.0.0", {name: answer_with(lambda _, question: question)})
    freeze(own_server)
    async with asyncio.timeout(TIMEOUT_S):
        await endpoints.stop()


async def test_a_process_that_stops_answers_the_queries_that_are_under_way_to_it(
    nats_server: NatsServer, services: Rpc, connection: Connection, tenant: Tenant, name: str
) -> None:
    port = nats_server.spec.port
    async with Proxy("stopping > nats", port) as proxy:
        stopping = await Connection.open(nats_server.url.replace(f":{port}", f":{proxy.port}"), "stopping")
        endpoints = await Rpc(stopping).serve(name, "1.0.0", {name: answer_with(lambda _, question: question)})
        proxy.fail("delay")
        query = asyncio.create_task(services.request(tenant, name, b"late", timeout_s=TIMEOUT_S))
        await asyncio.sleep(0)
        # nats-server has passed the query on.
        await connection.flush()
        await endpoints.stop()
        assert await query == b"late"
        await stopping.close()


@pytest.mark.rule("R29")
async def test_a_role_reports_its_health(services: Rpc, other: Connection, name: str) -> None:
    """The report of the first process that replies; None without one."""
    assert await services.health(name, timeout_s=TIMEOUT_S) is None
    await Rpc(other).serve_health(name, lambda: b'{"ok":true}')
    assert await until(lambda: services.health(name, timeout_s=TIMEOUT_S)) == b'{"ok":true}'


@pytest.mark.rule("R81")
@pytest.mark.rule("R30")
async def test_a_turn_with_a_reader_at_any_gateway_has_readers(
    services: Rpc, other: Connection, tenant: Tenant
) -> None:
    """A gateway with a reader replies; silence means that there is none."""
    read, unread = (TurnKey(tenant, TurnId(new_id())) for _ in range(2))
    assert not await services.has_readers(read, timeout_s=0.25)
    await Rpc(other).serve_presence(lambda key: key == read, lambda key: key.turn.encode())
    assert await until(lambda: services.has_readers(read, timeout_s=TIMEOUT_S))
    assert not await services.has_readers(unread, timeout_s=0.25)
    assert await services.collect_readers(unread, wait_s=0.25) == [unread.turn.encode()]


@pytest.mark.rule("S2")
async def test_a_query_without_a_subject_for_its_reply_leaves_no_unhandled_error(
    services: Rpc, connection: Connection, other: Connection, tenant: Tenant, name: str
) -> None:
    """A compromised process may send one."""
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    await serve(other, name, answer_with(lambda _, question: question))
    await connection.publish(subjects.query(tenant, name), b"")
    assert await services.request(tenant, name, b"next", timeout_s=TIMEOUT_S) == b"next"
    gc.collect()
    assert unhandled == []


async def test_a_first_report_may_come_later_than_the_others(other: Connection, connection: Connection) -> None:
    """Without `first_s`, a process that answers after `wait_s` counts as none."""

    async def respond_late(message: Msg) -> None:
        await asyncio.sleep(0.3)
        await message.respond(b"late")

    await other.subscribe(subjects.health("late"), respond_late)
    await other.flush()
    rpc = Rpc(connection)
    assert await rpc.every_health("late", wait_s=0.01) == []
    assert await rpc.every_health("late", wait_s=0.01, first_s=TIMEOUT_S) == [b"late"]
