"""The write probe: shows whether the log accepts entries, and leaves none behind."""

from signal import SIGCONT

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.proto.errors import LogUnavailable
from tailrace.proto.nats import Connection, WriteProbe, streams
from tailrace.proto.subjects import STREAM
from tests.harness.freeze import freeze
from tests.harness.until import until
from tests.integration.conftest import NewGateway


async def stored(connection: Connection) -> tuple[int, int]:
    state = (await connection.jetstream.stream_info(STREAM)).state
    return state.messages, state.last_seq


@pytest.mark.rule("R68")
async def test_what_is_stored_to_see_whether_the_log_takes_it_is_gone_at_once(own_connection: Connection) -> None:
    """It was there, for the sequence has moved, and it is not there, for nobody should ever meet it."""
    probe = WriteProbe(own_connection)
    for number in range(3):
        await probe.run()
        assert await stored(own_connection) == (0, number + 1)


@pytest.mark.rule("F15")
@pytest.mark.rule("R68")
async def test_a_log_that_stores_nothing_is_told_from_one_that_is_full(
    own_server: NatsServer, own_connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full is an answer, and Fullness says it; silence is not."""
    monkeypatch.setattr("tailrace.proto.nats.write_probe.TIMEOUT_S", 0.2)
    await own_connection.jetstream.delete_stream(STREAM)
    await streams.apply(own_connection, bytes_max=1)
    await WriteProbe(own_connection).run()
    assert await stored(own_connection) == (0, 0)
    freeze(own_server)
    with pytest.raises(LogUnavailable):
        await WriteProbe(own_connection).run()
    own_server.signal(SIGCONT)
    await own_connection.jetstream.delete_stream(STREAM)
    with pytest.raises(LogUnavailable):
        await WriteProbe(own_connection).run()


async def test_a_gateway_whose_log_stores_nothing_is_not_ready(
    own_server: NatsServer, own_connection: Connection, new_gateway: NewGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NATS answers and nothing is stored: who is sent here would only be told so. It is ready again by itself."""
    monkeypatch.setattr("tailrace.gateway.http.log_health.TRY_EVERY_S", 0.05)
    monkeypatch.setattr("tailrace.gateway.http.log_health.SILENT_S_MAX", 0.5)
    gateway = await new_gateway(own_server.url)

    async def said() -> str:
        parts = (await gateway.client.get("/readyz")).json()
        assert parts["nats"] == {"ok": True, "detail": ""}
        assert parts["log"]["ok"] is not bool(parts["log"]["detail"])
        return str(parts["log"]["detail"])

    assert await said() == ""
    # What takes no entries any more: a stream without its subjects.
    config = (await own_connection.jetstream.stream_info(STREAM)).config
    await own_connection.jetstream.update_stream(config.evolve(subjects=["nothing.>"], republish=None))
    assert (await until(said)).startswith("nothing has been stored for ")
    assert (await gateway.client.get("/readyz")).status_code == 503
    assert (await gateway.client.get("/healthz")).status_code == 200

    async def is_counted() -> bool:
        return "tailrace_gateway_log_writable 0.0" in (await gateway.client.get("/metrics")).text

    await until(is_counted)
    await own_connection.jetstream.update_stream(config)

    async def is_well() -> bool:
        return await said() == ""

    await until(is_well)
