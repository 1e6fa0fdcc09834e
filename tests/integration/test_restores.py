"""The list of restores of a log, on a nats-server."""

import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.nats.restores import record_restore
from tailrace.gateway.log.restores import NAME, bucket, read_restores
from tailrace.proto.nats import Connection
from tailrace.proto.nats.users import GATEWAY
from tests.harness.processes import as_user


@pytest.mark.rule("R150")
@pytest.mark.parametrize("knows_first", [False, True])
async def test_two_restores_of_one_backup_have_two_epochs(
    own_server: NatsServer, own_connection: Connection, *, knows_first: bool
) -> None:
    """Also if the second follows at once, whether the backup is older than the first restore or not."""
    url = as_user(own_server.url, GATEWAY)
    await record_restore(url)
    first = await read_restores(own_connection)
    if not knows_first:
        await bucket(own_connection).delete(NAME)
    await record_restore(url)
    *before, second = await read_restores(own_connection)
    assert before == (first if knows_first else [])
    assert second.epoch != first[0].epoch
