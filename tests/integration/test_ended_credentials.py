"""Revoked and expired credentials: open streams, downloads, waiting requests, tickets and logins end with them."""

import asyncio
import hashlib
import json
import socket
import time
from collections.abc import AsyncIterator

import pytest
from prometheus_client import REGISTRY

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.features.admin.key_store import KeyStore
from tailrace.features.admin.new_key import NewKey, new_key
from tailrace.features.gateway import DIALECTS
from tailrace.features.jwt.verifier import LEEWAY_S
from tailrace.features.logins.logins import COOKIE, Access
from tailrace.gateway.auth.api_key import hash_key
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.auth.signing_secret import signing_secret
from tailrace.gateway.http.scope import SCOPES, ScopeName
from tailrace.proto.ids import Tenant, TurnId, TurnKey, new_id
from tailrace.proto.nats import BlobStore, Connection, TurnLog
from tailrace.proto.ownership import ScopedKey
from tests.harness import jwts
from tests.harness.readers import is_read
from tests.harness.turn_writer import Writer
from tests.harness.until import until, until_equal
from tests.integration.conftest import Gateway, NewGateway

LAST_CHUNK = b"0\r\n\r\n"
TEXT = "half an answer"


@pytest.fixture
def keys(own_connection: Connection) -> KeyStore:
    return KeyStore(own_connection)


async def store(keys: KeyStore, tenant: Tenant, *scopes: ScopeName) -> NewKey:
    key = new_key(tenant, now=int(time.time()), scopes=scopes or SCOPES)
    await keys.create(key.record)
    return key


@pytest.fixture
async def api_key(keys: KeyStore, tenant: Tenant) -> NewKey:
    return await store(keys, tenant)


@pytest.fixture
async def gateway(own_server: NatsServer, api_key: NewKey, new_gateway: NewGateway) -> Gateway:
    """A gateway that knows the key and accepts JWTs; its client has no credential."""
    gateway = await new_gateway(own_server.url, api_keys="", heartbeat_s=0.2, **jwts.settings())
    gateway.client.headers.pop("authorization")
    return gateway


@pytest.fixture
async def turn(own_log: TurnLog, key: TurnKey) -> TurnKey:
    """A running turn with a text."""
    await Writer(own_log, key).open(TEXT)
    return key


def events(turn: TurnKey, dialect: str = "tailrace") -> str:
    return f"/v1/turns/{turn.turn}/events?dialect={dialect}"


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def short_jwt(tenant: Tenant, life_s: int) -> str:
    return jwts.token(sub=tenant, exp=int(time.time()) - LEEWAY_S + life_s).decode()


class Stream:
    """A request, and the bytes of its response up to the last chunk or the end of the connection."""

    def __init__(
        self, gateway: Gateway, path: str, headers: dict[str, str] | None = None, *, is_slow: bool = False
    ) -> None:
        lines = [
            f"GET {path} HTTP/1.1",
            "host: localhost",
            *(f"{name}: {value}" for name, value in (headers or {}).items()),
        ]
        self._head = "\r\n".join([*lines, "", ""]).encode()
        self._port = gateway.port
        self._receive_bytes = 4096 if is_slow else 65536

    async def until(self, expected: bytes) -> bytes:
        """Sends the request and reads up to `expected`."""
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", self._port))
        self._reader, self._writer = await asyncio.open_connection(sock=connection, limit=self._receive_bytes)
        self._writer.write(self._head)
        return await self.next(expected)

    async def next(self, expected: bytes) -> bytes:
        return await asyncio.wait_for(self._reader.readuntil(expected), 10)

    async def read_rest(self) -> bytes:
        # The gateway has sent megabytes. With the small receive buffer, reading them takes seconds.
        connection = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024 * 1024)
        received = b""
        try:
            async with asyncio.timeout(20):
                while not received.endswith(LAST_CHUNK) and (piece := await self._reader.read(65536)):
                    received += piece
        finally:
            self.close()
        return received

    def close(self) -> None:
        self._writer.close()


async def build_requests(gateway: Gateway, turn: TurnKey, key: NewKey) -> dict[str, tuple[str, dict[str, str]]]:
    """Returns path and headers of the turn's events by an access token and by tickets made with the key."""
    login = await gateway.client.post("/v1/login", headers=bearer(key.secret))
    single, shared = [
        (await gateway.client.post(f"/v1/turns/{turn.turn}/tickets", json=body, headers=bearer(key.secret))).json()
        for body in ({}, {"is_shared": True})
    ]
    return {
        "access token": (events(turn), bearer(login.json()["access_token"])),
        "ticket": (single["events"], {}),
        "shared ticket": (shared["events"], {}),
    }


async def statuses(gateway: Gateway, requests: list[tuple[str, dict[str, str]]]) -> list[int]:
    return [(await gateway.client.get(path, headers=headers)).status_code for path, headers in requests]


async def until_known(gateway: Gateway, *keys: NewKey) -> None:
    """Waits until a gateway accepts keys that were created after its start."""

    async def are_known() -> bool:
        return 401 not in await statuses(gateway, [("/v1/blobs/none", bearer(key.secret)) for key in keys])

    await until(are_known)


@pytest.mark.rule("R38")
async def test_a_revocation_ends_the_streams_of_every_dialect(gateway: Gateway, keys: KeyStore, turn: TurnKey) -> None:
    """With a clean end where the dialect marks its end, else without a last chunk, as in a drain."""
    made = {dialect: await store(keys, turn.tenant) for dialect in DIALECTS}
    await until_known(gateway, *made.values())
    requests = {dialect: (events(turn, dialect), bearer(key.secret)) for dialect, key in made.items()}
    streams = {dialect: Stream(gateway, *request) for dialect, request in requests.items()}
    for stream in streams.values():
        assert b" 200 " in await stream.until(b"\r\n\r\n")
    for key in made.values():
        await keys.revoke(key.record.id, 1)
    for dialect, stream in streams.items():
        rest = await stream.read_rest()
        assert rest.endswith(LAST_CHUNK) == DIALECTS[dialect].is_self_delimited, dialect
        assert b"done" not in rest, dialect
        path, headers = requests[dialect]
        resuming = (path, {**headers, "last-event-id": "1"})
        assert await statuses(gateway, [requests[dialect], resuming]) == [401, 401], dialect


@pytest.mark.rule("R38")
@pytest.mark.rule("R39")
async def test_the_first_key_ends_the_streams_and_tickets_of_clients_without_one(
    own_server: NatsServer, own_log: TurnLog, keys: KeyStore, new_gateway: NewGateway
) -> None:
    """Otherwise a stream of a session would show all later turns, too. The setting of keys ends tickets, too."""
    gateway = await new_gateway(own_server.url, api_keys="", heartbeat_s=0.2)
    gateway.client.headers.pop("authorization")
    turn = TurnKey(LOCAL.access.tenant, TurnId(new_id()))
    await Writer(own_log, turn).open(TEXT)
    made = await gateway.client.post(f"/v1/turns/{turn.turn}/tickets", json={"is_shared": True})
    ticket = made.json()["events"], dict[str, str]()
    requests = [(events(turn), {}), ticket]
    streams = [Stream(gateway, *request) for request in requests]
    for stream in streams:
        await stream.until(TEXT.encode())
    key = await store(keys, turn.tenant)
    for stream in streams:
        assert b"done" not in await stream.read_rest()
    assert await statuses(gateway, requests) == [401, 401]
    configured = await new_gateway(own_server.url, api_keys=f"acme:{hash_key(b'secret')}")
    configured.client.headers.pop("authorization")
    assert await statuses(configured, [ticket]) == [401]
    assert (await gateway.client.get(f"/v1/turns/{turn.turn}", headers=bearer(key.secret))).status_code == 200


@pytest.mark.rule("R38")
async def test_a_revocation_reaches_every_gateway_and_only_its_key(
    own_server: NatsServer,
    gateway: Gateway,
    new_gateway: NewGateway,
    keys: KeyStore,
    api_key: NewKey,
    turn: TurnKey,
) -> None:
    """Also access tokens, tickets and the cookie of a login that another gateway has made with the key."""
    other = await store(keys, turn.tenant)
    gateways = [gateway, *[await new_gateway(own_server.url, api_keys="", heartbeat_s=0.2) for _ in range(2)]]
    requests = [(events(turn), bearer(api_key.secret)), *(await build_requests(gateway, turn, api_key)).values()]
    login = await gateway.client.post("/v1/login", headers=bearer(api_key.secret))
    cookie = {"cookie": login.headers["set-cookie"].partition(";")[0]}
    streams = [Stream(gateways[number % 3], *request) for number, request in enumerate(requests)]
    streams += [Stream(one, *requests[0]) for one in gateways for _ in range(3)]
    others = [Stream(one, events(turn), bearer(other.secret)) for one in gateways]
    for stream in (*streams, *others):
        await stream.until(TEXT.encode())
    await keys.revoke(api_key.record.id, 1)
    for rest in await asyncio.gather(*(stream.read_rest() for stream in streams)):
        assert rest.endswith(LAST_CHUNK)
    for stream in others:
        assert await stream.next(b": hb\n")
        stream.close()
    for one in gateways:
        one.client.headers.pop("authorization", None)
        assert await statuses(one, requests) == [401] * 4
        assert (await one.client.post("/v1/login/refresh", headers=cookie)).status_code == 401


@pytest.mark.rule("R38")
async def test_an_expired_key_ends_its_streams_tickets_and_logins(
    gateway: Gateway, keys: KeyStore, tenant: Tenant, turn: TurnKey
) -> None:
    now = int(time.time())
    short = new_key(tenant, now=now, scopes=SCOPES, expires_at=now + 4)
    await keys.create(short.record)
    await until_known(gateway, short)
    requests = [(events(turn), bearer(short.secret)), *(await build_requests(gateway, turn, short)).values()]
    streams = [Stream(gateway, *request) for request in requests]
    for stream in streams:
        await stream.until(TEXT.encode())
    for rest in await asyncio.gather(*(stream.read_rest() for stream in streams)):
        assert rest.endswith(LAST_CHUNK)
        assert b'"done"' not in rest
    requests.append((events(turn), bearer("tr_unknown")))
    refused = [await gateway.client.get(path, headers=headers) for path, headers in requests]
    assert {(answer.status_code, answer.content) for answer in refused} == {(401, refused[-1].content)}


@pytest.mark.rule("R38")
async def test_a_stream_ends_when_its_jwt_or_access_token_expires_and_resumes_with_another(
    gateway: Gateway, own_connection: Connection, own_log: TurnLog, api_key: NewKey, turn: TurnKey
) -> None:
    signer = TokenSigner(await signing_secret(own_connection))
    until_s = int(time.time()) + 2
    access = signer.sign(Access(key=api_key.record.id, until=until_s))
    subject = TurnKey(turn.tenant, TurnId(new_id()))
    await Writer(own_log, subject).open(TEXT)
    requests = [(events(turn), bearer(access)), (events(subject), bearer(short_jwt(turn.tenant, 3)))]
    streams = [Stream(gateway, *request) for request in requests]
    for stream in streams:
        await stream.until(TEXT.encode())
    expired = count_expired()
    for rest in await asyncio.gather(*(stream.read_rest() for stream in streams)):
        assert rest.endswith(LAST_CHUNK)
    assert count_expired() == expired + len(streams)
    last = {"last-event-id": str((await own_log.read_turn(ScopedKey.whole(turn))).chain.last)}
    assert (await gateway.client.get(events(turn), headers=bearer(access) | last)).status_code == 401
    assert await statuses(gateway, requests) == [401, 401]
    writer = Writer(own_log, turn)
    writer.chain = (await own_log.read_turn(ScopedKey.whole(turn))).chain
    await writer.store_texts("the rest")
    await writer.end()
    following = signer.sign(Access(key=api_key.record.id, until=until_s + 60))
    resumed = await gateway.client.get(events(turn), headers=bearer(following) | last)
    assert (resumed.status_code, "the rest" in resumed.text, TEXT in resumed.text) == (200, True, False)


def count_expired() -> float:
    """Returns how many streams have ended because their credential was no longer valid."""
    return REGISTRY.get_sample_value("tailrace_gateway_stream_ends_total", {"end": "expired"}) or 0.0


async def is_any_read(log: TurnLog, tenant: Tenant) -> bool:
    """Whether a gateway follows a turn of the tenant."""
    found = await log.connection.jetstream.stream_info("TURNS", subjects_filter=f"turns.{tenant}.*.request")
    turns = [TurnKey(tenant, TurnId(subject.split(".")[2])) for subject in found.state.subjects or {}]
    return any([await is_read(log, turn) for turn in turns])


async def until_cancelled(log: TurnLog, turn: TurnKey) -> None:
    async def is_cancelled() -> bool:
        return (await log.read_turn(ScopedKey.whole(turn))).outcome == "cancelled"

    await until(is_cancelled)


@pytest.mark.parametrize("is_streamed", [True, False])
async def test_a_revocation_refuses_a_request_that_waits_for_its_answer(
    own_server: NatsServer,
    new_gateway: NewGateway,
    keys: KeyStore,
    api_key: NewKey,
    tenant: Tenant,
    own_log: TurnLog,
    *,
    is_streamed: bool,
) -> None:
    gateway = await new_gateway(own_server.url, api_keys="", heartbeat_s=30)
    messages = [{"role": "user", "content": "hi"}]
    body = {"model": "claude-haiku-5-5", "messages": messages, "stream": is_streamed, "on_disconnect": "cancel"}
    posting = gateway.client.post("/v1/chat/completions", json=body, headers=bearer(api_key.secret))
    waiting = asyncio.create_task(posting)
    await until(lambda: is_any_read(own_log, tenant))
    await keys.revoke(api_key.record.id, 1)
    refused = await asyncio.wait_for(waiting, 10)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "credential_invalid")
    await until_cancelled(own_log, TurnKey(tenant, TurnId(refused.headers["tailrace-turn"])))


class LateBody:
    """A JSON body whose last byte is sent after `finish` is set."""

    def __init__(self, **fields: object) -> None:
        self._json = json.dumps(fields).encode()
        self.finish = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._json[:-1]
        await self.finish.wait()
        yield self._json[-1:]


@pytest.mark.rule("R38")
async def test_a_request_is_refused_when_its_credential_ends_before_its_body_has_arrived(
    gateway: Gateway, keys: KeyStore, api_key: NewKey, tenant: Tenant
) -> None:
    """A revoked key could otherwise create another key with a body that it began before."""
    login = await gateway.client.post("/v1/login", headers=bearer(api_key.secret))
    new = {"tenant": tenant, "scopes": ["admin"]}
    cases = [
        ("/v1/admin/keys", api_key.secret, LateBody(**new)),
        ("/v1/turns", login.json()["access_token"], LateBody(message="hi")),
        ("/v1/turns", short_jwt(tenant, 3), LateBody(message="hi")),
    ]
    posts = [
        asyncio.create_task(
            gateway.client.post(path, content=body, headers={**bearer(secret), "content-type": "application/json"})
        )
        for path, secret, body in cases
    ]
    await asyncio.sleep(0.5)  # the gateway authenticates the requests before it reads their bodies
    await keys.revoke(api_key.record.id, 1)
    requests = [("/v1/turns", bearer(secret)) for _, secret, _ in cases]
    await until_equal(lambda: statuses(gateway, requests), [401] * 3)
    for _, _, body in cases:
        body.finish.set()
    for post in posts:
        refused = await post
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "credential_invalid")


@pytest.mark.rule("R38")
async def test_the_first_key_refuses_a_request_without_one_whose_body_has_not_arrived(
    own_server: NatsServer, keys: KeyStore, new_gateway: NewGateway
) -> None:
    gateway = await new_gateway(own_server.url, api_keys="")
    gateway.client.headers.pop("authorization")
    body = LateBody(message="hi")
    posting = gateway.client.post("/v1/turns", content=body, headers={"content-type": "application/json"})
    post = asyncio.create_task(posting)
    await asyncio.sleep(0.5)  # as above
    await store(keys, LOCAL.access.tenant)
    await until_equal(lambda: statuses(gateway, [("/v1/turns", {})]), [401])
    body.finish.set()
    assert (await post).status_code == 401


async def test_a_held_reader_ends_when_its_token_expires(
    own_server: NatsServer, gateway: Gateway, turn: TurnKey
) -> None:
    """A reader is held while the log is unreachable."""
    await own_server.stop()
    headers = bearer(short_jwt(turn.tenant, 4)) | {"last-event-id": "1"}
    stream = Stream(gateway, events(turn), headers)
    await stream.until(b": hb\n")
    assert (await stream.read_rest()).endswith(LAST_CHUNK)
    await own_server.start()


LONG_BYTES = 24 * 1024**2


async def store_blob(connection: Connection, tenant: Tenant) -> str:
    """Returns the path of a blob that is longer than all buffers on the way."""
    content = b"x" * LONG_BYTES
    sha256 = hashlib.sha256(content).hexdigest()
    await BlobStore(connection).put(tenant, {sha256: content})
    return f"/v1/blobs/{sha256}"


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_download_breaks_off_when_its_credential_ends(
    gateway: Gateway, keys: KeyStore, api_key: NewKey, own_log: TurnLog, tenant: Tenant, how: str
) -> None:
    """Without a last chunk, so that the client does not take it for complete."""
    path = await store_blob(own_log.connection, tenant)
    headers = bearer(api_key.secret if how == "revoked" else short_jwt(tenant, 3))
    slow = Stream(gateway, path, headers, is_slow=True)
    assert b" 200 " in await slow.until(b"\r\n\r\n")
    if how == "revoked":
        await keys.revoke(api_key.record.id, 1)
    await until_equal(lambda: statuses(gateway, [("/v1/blobs/none", headers)]), [401])
    cut = await slow.read_rest()
    assert len(cut) < LONG_BYTES
    assert not cut.endswith(LAST_CHUNK)
    whole = await gateway.client.get(path, headers=bearer(jwts.token(sub=tenant).decode()))
    assert len(whole.content) >= LONG_BYTES


async def test_a_login_or_ticket_has_the_scopes_of_its_key(gateway: Gateway, keys: KeyStore, turn: TurnKey) -> None:
    reader, writer = await store(keys, turn.tenant, "read"), await store(keys, turn.tenant, "write")
    await until_known(gateway, reader, writer)
    client, path = gateway.client, f"/v1/turns/{turn.turn}"
    access = bearer((await client.post("/v1/login", headers=bearer(reader.secret))).json()["access_token"])
    answers = [
        await client.get(path, headers=access),
        await client.post(f"{path}/cancel", headers=access),
        await client.delete(path, headers=access),
        await client.post("/v1/login", headers=bearer(writer.secret)),
        await client.post(f"{path}/tickets", json={}, headers=bearer(writer.secret)),
    ]
    assert [answer.status_code for answer in answers] == [200, 403, 403, 403, 403]


async def test_a_ticket_ends_with_its_jwt_and_a_jwt_cannot_log_in(gateway: Gateway, turn: TurnKey) -> None:
    """A JWT cannot be revoked: nothing made with it may outlive it."""
    end = int(time.time()) + 300
    headers = bearer(jwts.token(sub=turn.tenant, exp=end).decode())
    for body in ({}, {"is_shared": True, "life_s": 86400}):
        answer = await gateway.client.post(f"/v1/turns/{turn.turn}/tickets", json=body, headers=headers)
        ticket = answer.json()
        assert ticket["begin_by"] <= ticket["until"] <= end + LEEWAY_S
        stream = Stream(gateway, ticket["events"])
        await stream.until(TEXT.encode())
        stream.close()
    refused = await gateway.client.post("/v1/login", headers=headers)
    assert (refused.status_code, COOKIE in refused.headers.get("set-cookie", "")) == (400, False)
