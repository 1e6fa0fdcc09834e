"""The write probe: shows whether the log and the bucket CLAIMS store messages, and leaves no entry behind."""

import re
from signal import SIGCONT

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats import setup
from tailrace.gateway.log.write_probe import WriteProbe
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection
from tailrace.proto.subjects import CLAIMS_STREAM, STREAM
from tests.harness.freeze import freeze
from tests.harness.until import until, until_equal
from tests.integration.conftest import NewGateway


async def stream_state(connection: Connection) -> tuple[int, int]:
    state = (await connection.jetstream.stream_info(STREAM)).state
    return state.messages, state.last_seq


@pytest.mark.rule("F15")
@pytest.mark.rule("R68")
async def test_a_probe_stores_and_removes_an_entry_and_fails_for_a_silent_log_but_not_for_a_full_one(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sequence grows, and the stream has no message. A full log answers, and Fullness reports it."""
    monkeypatch.setattr("tailrace.gateway.log.write_probe.TIMEOUT_S", 0.2)
    probe = WriteProbe(own_connection)
    for number in range(3):
        await probe.run()
        assert await stream_state(own_connection) == (0, number + 1)
    await own_connection.jetstream.delete_stream(STREAM)
    await setup.apply(own_connection, bytes_max=1)
    await WriteProbe(own_connection).run()
    assert await stream_state(own_connection) == (0, 0)
    freeze(own_server)
    with pytest.raises(LogUnavailable):
        await WriteProbe(own_connection).run()
    own_server.signal(SIGCONT)
    await own_connection.jetstream.delete_stream(STREAM)
    with pytest.raises(LogUnavailable):
        await WriteProbe(own_connection).run()


@pytest.mark.parametrize(("stream", "why"), [(STREAM, "the log"), (CLAIMS_STREAM, "the bucket CLAIMS")])
async def test_a_gateway_is_not_ready_while_a_stream_stores_nothing(
    own_server: NatsServer,
    own_connection: Connection,
    new_gateway: NewGateway,
    monkeypatch: pytest.MonkeyPatch,
    stream: str,
    why: str,
) -> None:
    """NATS answers, but stores no entries, or no idempotency keys. The gateway becomes ready again by itself."""
    monkeypatch.setattr("tailrace.gateway.log.health.TRY_EVERY_S", 0.05)
    monkeypatch.setattr("tailrace.gateway.log.health.SILENT_S_MAX", 0.5)
    gateway = await new_gateway(own_server.url)

    async def log_detail() -> str:
        parts = (await gateway.client.get("/readyz")).json()
        assert parts["nats"] == {"ok": True, "detail": ""}
        assert parts["log"]["ok"] is not bool(parts["log"]["detail"])
        return str(parts["log"]["detail"])

    assert await log_detail() == ""
    # A stream without its subjects accepts no entries.
    config = (await own_connection.jetstream.stream_info(stream)).config
    await own_connection.jetstream.update_stream(config.evolve(subjects=["nothing.>"], republish=None))
    assert re.fullmatch(f"nothing has been stored for . s: {why} does not answer", await until(log_detail))
    posted = await gateway.client.post("/v1/turns", json={"message": "hi"}, headers={"idempotency-key": "1"})
    assert posted.status_code == 503
    assert (await gateway.client.get("/readyz")).status_code == 503
    assert (await gateway.client.get("/healthz")).status_code == 200

    async def is_counted() -> bool:
        return "tailrace_gateway_log_writable 0.0" in (await gateway.client.get("/metrics")).text

    await until(is_counted)
    await own_connection.jetstream.update_stream(config)
    await until_equal(log_detail, "")
