"""Revoked and expired credentials: open streams, downloads and waiting requests end."""

import asyncio
import hashlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx2
import pytest

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.gateway.auth.jwt import LEEWAY_S
from tailrace.gateway.clients.registry import DIALECTS
from tailrace.proto import batch
from tailrace.proto.api_key import SCOPES, NewKey, new_key
from tailrace.proto.ids import Tenant, TurnId
from tailrace.proto.nats import BlobStore, Connection, TurnLog
from tailrace.proto.nats.api_keys import ApiKeyStore
from tailrace.proto.subjects import TurnKey
from tests.harness import jwts
from tests.harness.readers import is_read
from tests.harness.turn_writer import Writer
from tests.harness.until import until
from tests.integration.conftest import Gateway, NewGateway

LAST_CHUNK = b"0\r\n\r\n"
TEXT = "half an ans"

NewApiKey = Callable[[], Awaitable[NewKey]]


@pytest.fixture
def keys(own_connection: Connection) -> ApiKeyStore:
    return ApiKeyStore(own_connection)


@pytest.fixture
async def api_key(keys: ApiKeyStore, tenant: Tenant) -> NewKey:
    return await stored(keys, tenant)


async def stored(keys: ApiKeyStore, tenant: Tenant) -> NewKey:
    key = new_key(tenant, now=int(time.time()), scopes=SCOPES)
    await keys.create(key.record)
    return key


@pytest.fixture
async def keyed(own_server: NatsServer, api_key: NewKey, new_gateway: NewGateway) -> Gateway:
    """A gateway that knows the key, and takes tokens."""
    return await new_gateway(own_server.url, api_keys="", heartbeat_s=0.2, **jwts.settings())


@pytest.fixture
async def turn(own_log: TurnLog, key: TurnKey) -> TurnKey:
    """One whose answer goes on for ever."""
    await Writer(own_log, key).open(TEXT)
    return key


class Wire:
    """A request, and all the bytes of its answer."""

    def __init__(self, gateway: Gateway, path: str, *headers: str) -> None:
        self._port = gateway.port
        self._head = "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *headers, "", ""]).encode()

    async def until(self, seen: bytes) -> bytes:
        self._receiving, self._sending = await asyncio.open_connection("127.0.0.1", self._port)
        self._sending.write(self._head)
        return await asyncio.wait_for(self._receiving.readuntil(seen), 10)

    async def rest(self) -> bytes:
        """What comes until the connection is closed, or the last chunk."""
        received = b""
        try:
            async with asyncio.timeout(10):
                while not received.endswith(LAST_CHUNK) and (piece := await self._receiving.read(65536)):
                    received += piece
        finally:
            self._sending.close()
        return received


def events(turn: TurnKey, dialect: str = "tailrace") -> str:
    return f"/v1/turns/{turn.turn}/events?dialect={dialect}"


def bearer(key: NewKey) -> str:
    return f"authorization: Bearer {key.secret}"


@pytest.mark.rule("R38")
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_streams_of_a_revoked_key_are_closed_in_every_dialect(
    keyed: Gateway, keys: ApiKeyStore, api_key: NewKey, turn: TurnKey, dialect: str
) -> None:
    """As at a drain: a clean end where an end is told, else one without its last chunk. Who comes back is refused."""
    wire = Wire(keyed, events(turn, dialect), bearer(api_key))
    assert b" 200 " in await wire.until(b"\r\n\r\n")
    await keys.revoke(api_key.record.id, 1)
    rest = await wire.rest()
    assert rest.endswith(LAST_CHUNK) == DIALECTS[dialect].is_self_delimited
    assert b"done" not in rest
    for cursor in ({}, {"last-event-id": "1"}):
        headers = {"authorization": f"Bearer {api_key.secret}", **cursor}
        back = await keyed.client.get(events(turn, dialect), headers=headers)
        assert (back.status_code, back.json()["error"]["code"]) == (401, "credential_invalid")


@pytest.mark.rule("R38")
async def test_a_revocation_closes_streams_on_every_gateway(
    own_server: NatsServer, keyed: Gateway, new_gateway: NewGateway, keys: ApiKeyStore, api_key: NewKey, turn: TurnKey
) -> None:
    """Three of them with four streams each; those of another key of the same tenant go on."""
    other = await stored(keys, turn.tenant)
    gateways = [keyed, *[await new_gateway(own_server.url, api_keys="", heartbeat_s=0.2) for _ in range(2)]]
    wires = [Wire(gateway, events(turn), bearer(api_key)) for gateway in gateways for _ in range(4)]
    others = [Wire(gateway, events(turn), bearer(other)) for gateway in gateways]
    for wire in (*wires, *others):
        await wire.until(TEXT.encode())
    await keys.revoke(api_key.record.id, 1)
    for rest in await asyncio.gather(*(wire.rest() for wire in wires)):
        assert rest.endswith(LAST_CHUNK)
    for wire in others:
        assert await asyncio.wait_for(wire._receiving.readuntil(b": hb\n"), 10)
        wire._sending.close()


@pytest.mark.rule("R38")
async def test_streams_of_a_jwt_end_when_it_expires(keyed: Gateway, own_log: TurnLog, tenant: Tenant) -> None:
    """Its time is asked for while the stream runs, and not only at its beginning."""
    key = TurnKey(tenant, TurnId("00000000-0000-7000-8000-000000000000"))
    await Writer(own_log, key).open(TEXT)
    short = jwts.token(sub=tenant, exp=int(time.time()) - LEEWAY_S + 3).decode()
    wire = Wire(keyed, events(key), f"authorization: Bearer {short}")
    await wire.until(TEXT.encode())
    assert (await wire.rest()).endswith(LAST_CHUNK)
    back = await keyed.client.get(events(key), headers={"authorization": f"Bearer {short}", "last-event-id": "1"})
    assert back.status_code == 401


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_request_that_waits_for_a_json_answer_is_refused(
    own_server: NatsServer,
    new_gateway: NewGateway,
    keys: ApiKeyStore,
    api_key: NewKey,
    tenant: Tenant,
    own_log: TurnLog,
    *,
    is_streamed: bool,
) -> None:
    """Before the first word, and where the answer comes whole: 401, and the turn goes on."""
    keyed = await new_gateway(own_server.url, api_keys="", heartbeat_s=30)
    body = {"model": "claude-haiku-5-5", "messages": [{"role": "user", "content": "hi"}], "stream": is_streamed}
    headers = {"authorization": f"Bearer {api_key.secret}"}
    waiting = asyncio.create_task(keyed.client.post("/v1/chat/completions", json=body, headers=headers))
    await until(lambda: is_any_read(own_log, tenant))
    await keys.revoke(api_key.record.id, 1)
    refused = await asyncio.wait_for(waiting, 10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "credential_invalid")


async def is_any_read(log: TurnLog, tenant: Tenant) -> bool:
    """Whether a gateway follows a turn of the tenant's, as its subscription shows."""
    found = await log._connection.jetstream.stream_info("TURNS", subjects_filter=f"turns.{tenant}.*.request")
    turns = [TurnKey(tenant, TurnId(subject.split(".")[2])) for subject in found.state.subjects or {}]
    return any([await is_read(log, turn) for turn in turns])


async def test_on_disconnect_cancel_applies_when_the_credential_ends(
    keyed: Gateway, keys: ApiKeyStore, api_key: NewKey, own_log: TurnLog, tenant: Tenant
) -> None:
    """`on_disconnect: cancel`: a reader that cannot come back has gone away."""
    headers = {"authorization": f"Bearer {api_key.secret}"}
    body = {"message": "hi", "on_disconnect": "cancel"}
    key = TurnKey(tenant, (await keyed.client.post("/v1/turns", json=body, headers=headers)).json()["turn"])
    wire = Wire(keyed, events(key), bearer(api_key))
    await wire.until(b"\r\n\r\n")
    await keys.revoke(api_key.record.id, 1)
    await wire.rest()

    async def is_cancelled() -> bool:
        return (await own_log.turn(key)).outcome == "cancelled"

    await until(is_cancelled)


async def test_a_held_reader_ends_when_its_token_expires(
    own_server: NatsServer, keyed: Gateway, own_log: TurnLog, tenant: Tenant
) -> None:
    """While the log is away: heartbeats, and then a clean end, as nobody may be held for ever."""
    key = TurnKey(tenant, TurnId("00000000-0000-7000-8000-000000000001"))
    await Writer(own_log, key).open(TEXT)
    await own_server.stop()
    short = jwts.token(sub=tenant, exp=int(time.time()) - LEEWAY_S + 4).decode()
    wire = Wire(keyed, events(key), f"authorization: Bearer {short}", "last-event-id: 1")
    await wire.until(b": hb\n")
    assert (await wire.rest()).endswith(LAST_CHUNK)
    await own_server.start()


@pytest.mark.rule("R38")
async def test_an_expired_key_ends_its_streams_tickets_and_logins(
    keyed: Gateway, keys: ApiKeyStore, tenant: Tenant, turn: TurnKey
) -> None:
    """Streams by the key, by an access token and by tickets, which would all last longer; then it is nobody's key."""
    short = new_key(tenant, now=int(time.time()), scopes=SCOPES, expires_at=int(time.time()) + 4)
    await keys.create(short.record)
    headers = {"authorization": f"Bearer {short.secret}"}

    async def is_known() -> bool:
        return (await keyed.client.get("/v1/blobs/none", headers=headers)).status_code == 404

    await until(is_known)
    access = (await keyed.client.post("/v1/login", headers=headers)).json()["access_token"]
    tickets = [
        (await keyed.client.post(f"/v1/turns/{turn.turn}/tickets", json=body, headers=headers)).json()["events"]
        for body in ({}, {"is_shared": True})
    ]
    wires = [
        Wire(keyed, events(turn), bearer(short)),
        Wire(keyed, events(turn), f"authorization: Bearer {access}"),
        *(Wire(keyed, path) for path in tickets),
    ]
    for wire in wires:
        assert TEXT.encode() in await wire.until(TEXT.encode())
    for rest in await asyncio.gather(*(wire.rest() for wire in wires)):
        assert rest.endswith(LAST_CHUNK)
        assert b'"done"' not in rest
    async with httpx2.AsyncClient(base_url=keyed.url, trust_env=False) as stranger:
        refused = [
            await stranger.get(events(turn), headers={"authorization": f"Bearer {credential}"})
            for credential in (short.secret, access, "tr_nobodys")
        ]
        refused += [await stranger.get(path) for path in tickets]
    assert {(answer.status_code, answer.content) for answer in refused} == {(401, refused[2].content)}


class Slow:
    """A download whose reader takes little at a time, so that most of it is not sent yet."""

    def __init__(self, gateway: Gateway, path: str, credential: str) -> None:
        self._port = gateway.port
        self._head = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {credential}\r\n\r\n".encode()

    async def begin(self) -> bytes:
        """The first bytes of its answer."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
        self._receiving, self._sending = await asyncio.open_connection(sock=connection, limit=4096)
        self._sending.write(self._head)
        return await asyncio.wait_for(self._receiving.readuntil(b"\r\n\r\n"), 10)

    async def rest(self) -> bytes:
        """What comes until the connection is closed."""
        try:
            return await asyncio.wait_for(self._receiving.read(), 20)
        finally:
            self._sending.close()


LONG_BYTES = 24 * 1024**2


@pytest.fixture
async def downloads(
    keyed: Gateway, api_key: NewKey, own_connection: Connection, own_log: TurnLog, tenant: Tenant
) -> dict[str, str]:
    """Paths of what is longer than all buffers between here and there: a blob, and a batch's results."""
    long = b"x" * LONG_BYTES
    sha256 = hashlib.sha256(long).hexdigest()
    await BlobStore(own_connection).put(tenant, {sha256: long})
    body = {"requests": [{"custom_id": f"n{number}", "params": {"message": "hi"}} for number in range(96)]}
    headers = {"authorization": f"Bearer {api_key.secret}"}
    asked = (await keyed.client.post("/v1/batches", json=body, headers=headers)).json()
    for number in range(96):
        writer = Writer(own_log, batch.child_key(TurnKey(tenant, TurnId(asked["batch"])), number))
        await writer.open("y" * (LONG_BYTES // 96))
        await writer.end()
    return {"blob": f"/v1/blobs/{sha256}", "results": asked["links"]["results"]}


@pytest.mark.parametrize("what", ["blob", "results"])
@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_download_ends_with_its_credential(
    keyed: Gateway, keys: ApiKeyStore, api_key: NewKey, downloads: dict[str, str], tenant: Tenant, what: str, how: str
) -> None:
    """What is in buffers already still comes, and by far not all; without its last chunk it is not taken for it."""
    short = jwts.token(sub=tenant, exp=int(time.time()) - LEEWAY_S + 3).decode()
    slow = Slow(keyed, downloads[what], api_key.secret if how == "revoked" else short)
    assert b" 200 " in await slow.begin()
    if how == "revoked":
        await keys.revoke(api_key.record.id, 1)
    # By then its time is over, and everybody who looks is told so.
    await until(lambda: is_refused(keyed, downloads[what], api_key.secret if how == "revoked" else short))
    cut = await slow.rest()
    assert len(cut) < LONG_BYTES
    assert not cut.endswith(LAST_CHUNK)
    whole = await keyed.client.get(
        downloads[what], headers={"authorization": f"Bearer {jwts.token(sub=tenant).decode()}"}
    )
    assert len(whole.content) >= LONG_BYTES


async def is_refused(gateway: Gateway, path: str, credential: str) -> bool:
    """Asked of the head alone: what follows is long."""
    refused = await gateway.client.head(path, headers={"authorization": f"Bearer {credential}"})
    return refused.status_code == 401


@pytest.fixture
async def exchanged(keyed: Gateway, api_key: NewKey, turn: TurnKey) -> AsyncIterator[dict[str, httpx2.Request]]:
    """What a key was exchanged for, each as a request that it admits."""
    async with httpx2.AsyncClient(base_url=keyed.url, trust_env=False) as client:
        headers = {"authorization": f"Bearer {api_key.secret}"}
        access = (await client.post("/v1/login", headers=headers)).json()["access_token"]
        made = [
            (await client.post(f"/v1/turns/{turn.turn}/tickets", json=body, headers=headers)).json()["events"]
            for body in ({}, {"is_shared": True})
        ]
        yield {
            "access token": client.build_request("GET", events(turn), headers={"authorization": f"Bearer {access}"}),
            "ticket": client.build_request("GET", made[0]),
            "shared ticket": client.build_request("GET", made[1]),
        }


@pytest.mark.parametrize("kind", ["access token", "ticket", "shared ticket"])
async def test_tickets_and_logins_end_with_their_key(
    keyed: Gateway, keys: ApiKeyStore, api_key: NewKey, exchanged: dict[str, httpx2.Request], kind: str
) -> None:
    """Its streams, too, at once."""
    request = exchanged[kind]
    headers = [f"{name}: {value}" for name, value in request.headers.items() if name == "authorization"]
    wire = Wire(keyed, request.url.raw_path.decode(), *headers)
    await wire.until(TEXT.encode())
    await keys.revoke(api_key.record.id, 1)
    assert (await wire.rest()).endswith(LAST_CHUNK)
    async with httpx2.AsyncClient(base_url=keyed.url, trust_env=False) as client:
        refused = await client.send(request)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "credential_invalid")
