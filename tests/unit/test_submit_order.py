"""The order of the steps of `POST /v1/turns`, with every optional one, and what a step that fails leaves behind.

The order carries money: what a turn may cost is reserved before its key is claimed, a repeated POST is found before
anything is stored or cancelled, and a refused request claims nothing and gives back what it has reserved.
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx2
import msgspec
import pytest

from tailrace.features.files.records import FileRecord, GetFile
from tailrace.features.gateway import FEATURES, Settings
from tailrace.features.limits.quotas import Quota
from tailrace.features.limits.soft_limits import SoftLimits
from tailrace.features.limits.storage_share import StorageShare
from tailrace.features.prompts.templates import Prompts
from tailrace.features.structured_output.json_schema import SchemaChecker
from tailrace.gateway.app import app
from tailrace.gateway.auth.signed_tokens import TokenSigner
from tailrace.gateway.history_client import HistoryClient
from tailrace.gateway.http.deferred_response import send_deferred
from tailrace.gateway.log.fullness import LogFullness
from tailrace.gateway.models.catalogue import Catalogue
from tailrace.gateway.models.offer import Offer
from tailrace.gateway.serve import build, start
from tailrace.gateway.turns.queue_estimate import QueueEstimate
from tailrace.gateway.turns.reader_presence import ReaderPresence
from tailrace.proto import entries
from tailrace.proto.errors import LogFull, LogUnavailable, Refused, TurnUnknown
from tailrace.proto.ids import Seq, SessionId, Tenant, TurnId, TurnKey
from tailrace.proto.nats import BlobPins, BlobStore, Claim, Claims, Counters, Slots, Tombstones, TurnLog
from tailrace.proto.nats.counters import Increment
from tailrace.proto.nats.idempotency import StoredClaim
from tailrace.proto.nats.log_server import LiveFeed
from tailrace.proto.nats.slots import Slot
from tailrace.proto.ownership import ScopedKey
from tailrace.proto.records import Context, GetContext, GetLastTurn
from tailrace.proto.runtime.flag import Flag

KEY = "sk-test-of-the-order"
PARENT = TurnId("parent")
RUNNING = TurnId("running")
LIMITS = "requests=10,tokens=1000000,running=2,usd_day=100,bytes_day=1000000"
# A message that is too long for the log, so that it is stored as a blob.
LONG = "x" * 200_000
BODY = {
    "prompt": {"name": "question"},
    "messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f1"}}]}],
    "model": "claude-haiku-5-5",
    "session": "session",
    "webhook": "https://hooks.example/turns",
    "schema": {"type": "object", "properties": {}, "additionalProperties": False},
}

# The steps of a new turn in their order. Beside each is its reason, where another order would cost money or data.
LOOK_UP = ["render the prompt", "look up the key"]
"""Nothing has been counted, stored or cancelled when a repeated POST is found."""
ADMIT = [
    "check the room of the log",  # before blobs, which would fill the disk
    "check the queue",
    "check the share of log_bytes",
    "count requests",
]
FILES = ["query file", "read a file"]
BUILD = [*FILES, "query context", "offer the models"]
CHECK = ["estimate the queue", "check the schema"]
RESERVE = [
    "count tokens",
    "acquire a slot",
    "compare usd_day",  # before the count, which may lack turns: turns at once would exceed the budget
    "count usd_day",
]
"""Before the claim: a turn whose money is not reserved must not be found by a repeated POST."""
BLOBS = ["check the share of blob_bytes", "count bytes_day", "pin blobs", "store blobs"]
"""After the reservation: a request that is refused stores none."""
STORE = ["claim the key", "append"]
AFTER = ["add to the share of log_bytes", "look for the end of parent"]
BEFORE_CLAIM = [*LOOK_UP, *ADMIT, *BUILD, *CHECK, *RESERVE, *BLOBS]
NEW_TURN = [*BEFORE_CLAIM, *STORE, *AFTER, "release pins"]
# Steps that run after a failure.
RELEASES = {"give back", "release", "keep"}


class Services:
    """Everything that a submission calls. Each call is a step in `steps`, and fails if `failures` has an error for it.

    The methods of the real classes are replaced, so the steps are those of a whole gateway.
    """

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.counts: dict[str, int] = {}
        self.slots: set[Seq] = set()
        self.claims: dict[str, Claim] = {}
        self.turns: dict[TurnKey, entries.Request] = {}
        self.is_busy = False
        self.on_step: Callable[[str], None] = lambda _: None

    def step(self, name: str) -> None:
        self.steps.append(name)
        self.on_step(name)
        if name in self.failures:
            raise self.failures[name]

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replaces the methods that reach NATS, persistence or a subprocess, and those that only look at a state."""
        replaced: dict[type, dict[str, Callable[..., Any]]] = {
            Prompts: {"render": self._render},
            LogFullness: {"require_room": self._require_room},
            QueueEstimate: {"check": self._check_queue, "estimate_position": self._estimate_position},
            StorageShare: {"check": self._check_share, "add": self._add_to_share},
            Counters: {"increment": self._count},
            SoftLimits: {"complete": self._compare},
            Slots: {"acquire": self._acquire, "release": self._release, "list_held": self._no_slots},
            HistoryClient: {"query": self._query},
            BlobStore: {"read": self._read_blob, "put": self._put_blobs},
            BlobPins: {"pin": self._pin, "release_after": self._release_pins},
            Catalogue: {"offer": self._offer},
            SchemaChecker: {"check_schema": self._check_schema},
            Claims: {"find": self._find, "read": self._read, "claim": self._claim, "put": self._put},
            Tombstones: {"exists": self._is_deleted},
            TurnLog: {
                "append": self._append,
                "subscribe": self._subscribe,
                "read_turn": self._read_turn,
                "read_turn_direct": self._read_running,
                "has_end": self._has_end,
            },
            ReaderPresence: {"is_over": self._is_over, "has_readers_anywhere": self._is_over},
        }
        for kind, methods in replaced.items():
            for name, method in methods.items():
                monkeypatch.setattr(kind, name, _as_method(method))

    async def _render(self, _: Prompts, params: Any, tenant: Tenant) -> Any:
        del tenant
        self.step("render the prompt")
        return msgspec.structs.replace(params, prompt=None, system=LONG)

    def _require_room(self, _: LogFullness) -> None:
        self.step("check the room of the log")

    def _check_queue(self, _: QueueEstimate, tenant: Tenant) -> None:
        del tenant
        self.step("check the queue")

    def _estimate_position(self, _: QueueEstimate, tenant: Tenant) -> int:
        del tenant
        self.step("estimate the queue")
        return 1

    def _check_share(self, share: StorageShare, *_: object) -> None:
        self.step(f"check the share of {share._store.counter}")  # noqa: SLF001  # it has no other name

    def _add_to_share(self, share: StorageShare, *_: object) -> None:
        # Blobs are added by the step that stores them.
        if share._store.counter == "log_bytes":  # noqa: SLF001
            self.step("add to the share of log_bytes")

    async def _compare(self, _: SoftLimits, __: object, quota: Quota, ___: str | None) -> None:
        self.step(f"compare {quota.what}")

    async def _count(self, _: Counters, subject: str, amount: int) -> Increment:
        what = subject.split(".")[3]
        if what.endswith("_back"):
            return Increment(amount, Seq(len(self.steps)))
        if amount > 0:
            self.step(f"count {what}")
        else:
            self.steps.append(f"give back {what}")
        self.counts[what] = self.counts.get(what, 0) + amount
        return Increment(self.counts[what], Seq(len(self.steps)))

    async def _acquire(self, _: Slots, *_arguments: object, **_named: object) -> Slot:
        self.step("acquire a slot")
        seq = Seq(len(self.slots) + 1)
        self.slots.add(seq)
        return Slot("slot", seq)

    async def _release(self, _: Slots, seq: Seq) -> None:
        self.steps.append("release the slot")
        self.slots.discard(seq)

    async def _no_slots(self, *_: object) -> list[object]:
        return []

    async def _query(self, _: HistoryClient, _tenant: Tenant, query: Any) -> object:
        self.step(f"query {query.query}")
        match query:
            case GetFile():
                now = datetime.now(UTC)
                return FileRecord(
                    file="f1",
                    sha256="0" * 64,
                    bytes=4,
                    filename="f.txt",
                    media_type="text/plain",
                    purpose="user_data",
                    created_at=now,
                    expires_at=None,
                )
            case GetContext() if self.is_busy:
                raise Refused("session_busy", "a turn of the session runs")
            case GetLastTurn():
                return SimpleNamespace(turn=RUNNING, outcome="running", parent=None, session=SessionId("session"))
        return Context(SessionId("session"), PARENT, [])

    async def _read_blob(self, _: BlobStore, *_arguments: object) -> bytes:
        self.step("read a file")
        return b"text"

    async def _put_blobs(self, _: BlobStore, *_arguments: object, **_named: object) -> None:
        self.step("store blobs")

    async def _pin(self, _: BlobPins, *_arguments: object) -> None:
        self.step("pin blobs")

    @asynccontextmanager
    async def _release_pins(self, _: BlobPins, *_arguments: object) -> AsyncIterator[None]:
        try:
            yield
        except LogUnavailable:
            self.steps.append("keep pins")
            raise
        except BaseException:
            self.steps.append("release pins")
            raise
        self.steps.append("release pins")

    async def _offer(self, *_: object) -> Offer:
        self.step("offer the models")
        return Offer()

    async def _check_schema(self, *_: object) -> None:
        self.step("check the schema")

    async def _find(self, _: Claims, _tenant: Tenant, key: str) -> Claim | None:
        self.step("look up the key")
        return self.claims.get(key)

    async def _read(self, _: Claims, _tenant: Tenant, key: str) -> StoredClaim | None:
        self.step("look up the count")
        claim = self.claims.get(key)
        return StoredClaim(claim, 1) if claim is not None else None

    async def _claim(self, _: Claims, _tenant: Tenant, key: str, own: Claim) -> Claim:
        self.step("claim the key")
        return self.claims.setdefault(key, own)

    async def _put(self, _: Claims, _tenant: Tenant, key: str, own: Claim) -> int:
        self.step("claim the count")
        self.claims[key] = own
        return 1

    async def _is_deleted(self, *_: object) -> bool:
        self.step("look for a tombstone")
        return False

    async def _append(self, _: TurnLog, key: TurnKey, _chain: object, entry: entries.Request, **_named: object) -> None:
        self.step("append")
        self.turns[key] = entry

    @asynccontextmanager
    async def _subscribe(self, *_: object) -> AsyncIterator[LiveFeed]:
        self.step("subscribe")
        yield LiveFeed()

    async def _read_turn(self, _: TurnLog, key: ScopedKey) -> object:
        if key.plain not in self.turns:
            raise TurnUnknown(key.turn)
        return SimpleNamespace(request=self.turns[key.plain], outcome="running")

    async def _read_running(self, *_: object) -> object:
        """Returns the turn that is to be cancelled, as if it had just ended."""
        self.step("cancel the running turn")
        self.is_busy = False
        return SimpleNamespace(end=object())

    async def _has_end(self, _: TurnLog, key: TurnKey) -> bool:
        if key.turn == PARENT:
            self.step("look for the end of parent")
        return True

    async def _is_over(self, *_: object) -> bool:
        return True

    def held(self) -> dict[str, int]:
        """Returns what is reserved or counted, without the bytes of blobs, and the number of slots."""
        return {what: count for what, count in {**self.counts, "slots": len(self.slots)}.items() if count}

    def is_given_back(self) -> bool:
        """Returns whether nothing is counted or reserved, and neither a claim nor a turn is stored."""
        return not (self.held() or self.claims or self.turns)


def _split(steps: list[str]) -> tuple[list[str], set[str]]:
    """Returns the steps before the first release, and the releases, which run in any order."""
    first = next((index for index, step in enumerate(steps) if step.startswith(tuple(RELEASES))), len(steps))
    return steps[:first], set(steps[first:])


def _as_method(method: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that a class binds to its instance, which becomes the first argument after `self`."""

    def call(instance: object, *arguments: object, **named: object) -> Any:
        return method(instance, *arguments, **named)

    return call


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> Services:
    made = Services()
    made.patch(monkeypatch)
    return made


async def post(body: dict[str, Any], path: str = "/v1/turns", **headers: str) -> httpx2.Response:
    """Sends the body to a whole gateway, with an idempotency key and the given headers."""
    nats = SimpleNamespace(max_payload=1_000_000, new_inbox=lambda: "inbox")
    connection: Any = SimpleNamespace(client=nats, jetstream=None)
    key = hashlib.sha256(KEY.encode()).hexdigest()
    settings = msgspec.convert({"api_keys": f"ours:{key}", "limits_key": LIMITS, "webhooks": True}, Settings)
    async with asyncio.TaskGroup() as group:
        draining = Flag()
        gateway = build(settings, connection, group, draining, signer=TokenSigner(b"secret"))
        transport = httpx2.ASGITransport(app=send_deferred(app(gateway, start(gateway, settings, FEATURES))))
        all_headers = {"x-api-key": KEY, **(headers or {"idempotency-key": "key"})}
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", headers=all_headers) as client:
            response = await client.post(path, json=body)
        # Ends the background tasks of the turn.
        draining.set()
    return response


async def test_the_steps_of_a_new_turn_run_in_this_order(services: Services) -> None:
    response = await post(BODY)
    assert response.status_code == 202, response.text
    assert services.steps == NEW_TURN
    assert services.counts.keys() >= {"requests", "tokens", "usd_day", "bytes_day"}
    assert len(services.slots) == 1


@pytest.mark.parametrize("failing", BEFORE_CLAIM)
async def test_a_step_that_refuses_ends_the_submission_and_gives_back_what_the_steps_before_it_took(
    services: Services, failing: str
) -> None:
    """The request claims no key and stores no turn."""
    # A budget that refuses is compared twice.
    is_refused = not failing.endswith(" usd_day")
    services.failures[failing] = Refused("server_busy", "not now") if is_refused else LogUnavailable("no answer")
    response = await post(BODY)
    assert response.json()["error"]["code"] == ("server_busy" if is_refused else "log_unavailable")
    ran, released = _split(services.steps)
    before = BEFORE_CLAIM[: BEFORE_CLAIM.index(failing) + 1]
    # A concurrent POST with the key may be the reason of a refusal after its first look.
    is_built = before[-1] in [*BUILD, *CHECK, *RESERVE, *BLOBS]
    assert ran == [*before, *(["look up the key"] if is_built and is_refused else [])]
    assert services.is_given_back()
    counted = {step.removeprefix("count ") for step in before[:-1] if step.startswith("count ")}
    assert {step.removeprefix("give back ") for step in released if step.startswith("give back")} >= counted
    assert ("release the slot" in released) is ("acquire a slot" in before[:-1])
    assert ("release pins" in released) is ("check the share of blob_bytes" in before)


@pytest.mark.parametrize(
    ("failing", "error", "is_kept", "is_claimed"),
    [
        ("claim the key", LogUnavailable("no answer"), False, False),
        ("append", LogFull("full"), False, True),
        ("append", LogUnavailable("no answer"), True, True),
        ("look for the end of parent", RuntimeError("a fault"), True, True),
    ],
)
async def test_after_the_claim_a_reservation_is_given_back_only_if_nothing_can_be_stored(
    services: Services, failing: str, error: Exception, *, is_kept: bool, is_claimed: bool
) -> None:
    """The end of a turn that is stored settles its reservations."""
    services.failures[failing] = error
    response = await post(BODY)
    assert response.status_code >= 500
    ran, released = _split(services.steps)
    assert ran == NEW_TURN[: NEW_TURN.index(failing) + 1]
    assert set(services.held()) == ({"requests", "tokens", "usd_day", "bytes_day", "slots"} if is_kept else set())
    assert bool(services.claims) is is_claimed
    # If the entry may be stored, its blobs must not be collected.
    assert ("keep pins" in released) is isinstance(error, LogUnavailable)


async def test_a_repeated_post_is_found_before_any_step_that_counts_stores_or_cancels(services: Services) -> None:
    """Also if the log is full. With another body it is refused as early."""
    first = await post(BODY)
    services.steps.clear()
    services.failures = dict.fromkeys([*ADMIT, *BUILD, *CHECK, *RESERVE, *BLOBS, *STORE], LogFull("full"))
    again = await post(BODY)
    assert (again.status_code, again.json()["turn"]) == (202, first.json()["turn"])
    other = await post({**BODY, "metadata": {"other": "body"}})
    assert other.json()["error"]["code"] == "idempotency_key_reused"
    assert services.steps == 2 * LOOK_UP


async def test_a_refused_post_gets_the_turn_that_a_concurrent_post_with_its_key_has_stored(services: Services) -> None:
    """That turn may be the reason of the refusal."""
    first = await post(BODY)
    claim, services.claims = services.claims, {}
    held = services.held()
    services.failures["check the schema"] = Refused("schema_invalid", "not valid")
    services.on_step = lambda step: services.claims.update(claim) if step == "check the schema" else None
    second = await post(BODY)
    assert (second.status_code, second.json()["turn"]) == (202, first.json()["turn"])
    assert services.held() == held
    assert services.claims == claim


@pytest.mark.parametrize("is_claimed_meanwhile", [False, True])
async def test_on_busy_interrupt_looks_up_the_key_again_before_it_cancels(
    services: Services, *, is_claimed_meanwhile: bool
) -> None:
    """A concurrent POST with the key may have stored its turn, which would be the one to cancel."""
    body = {**BODY, "on_busy": "interrupt"}
    first = await post(body)
    services.steps.clear()
    claim, services.claims = services.claims, {}
    services.is_busy = True
    if is_claimed_meanwhile:
        services.on_step = lambda step: services.claims.update(claim) if step == "query last" else None
    second = await post(body)
    looked_up = [*LOOK_UP, *ADMIT, *FILES, "query context", "query last", "look up the key"]
    if is_claimed_meanwhile:
        assert second.json()["turn"] == first.json()["turn"]
        assert _split(services.steps)[0] == [*looked_up, "look up the key"]
    else:
        assert second.json()["turn"] != first.json()["turn"]
        rest = NEW_TURN[NEW_TURN.index("query context") :]
        assert services.steps == [*looked_up, "cancel the running turn", *rest]


async def test_an_sdk_request_without_a_key_stores_the_claim_for_its_repetitions_last(services: Services) -> None:
    """A refused request claims nothing. Its repetition would get the answer to an earlier equal request."""
    body = {"model": "claude-haiku-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    services.failures["append"] = LogFull("full")
    await post(body, "/v1/messages", **{"x-stainless-retry-count": "0"})
    ran, _ = _split(services.steps)
    assert ran[0] == "look up the count"
    assert ran[-4:] == ["count bytes_day", "claim the count", "subscribe", "append"]
    assert "claim the key" not in ran


async def test_the_steps_of_a_new_batch_run_in_this_order(services: Services) -> None:
    """A batch needs no place in the queue."""
    inputs = [{"custom_id": "one", "params": {"message": "hi", "schema": BODY["schema"]}}]
    response = await post({"requests": inputs, "parallel": 1, "webhook": BODY["webhook"]}, "/v1/turn-batches")
    assert response.status_code == 202, response.text
    assert services.steps == [
        "look up the key",
        "check the room of the log",
        "check the share of log_bytes",
        "count requests",
        "offer the models",
        "check the schema",
        *RESERVE,
        *["pin blobs", "store blobs"],  # of the line of each input
        "check the share of blob_bytes",
        "count bytes_day",
        "pin blobs",
        "store blobs",
        *STORE,
        "add to the share of log_bytes",
        "release pins",
    ]
