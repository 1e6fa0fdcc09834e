"""Turn submission without optional features, against a log and claims in memory: repeated POSTs and refusals."""

import asyncio
import math
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock

import msgspec
import pytest

from tailrace.gateway.auth.admission import Limiter
from tailrace.gateway.auth.authenticate import LOCAL
from tailrace.gateway.auth.principal import Principal
from tailrace.gateway.http.large_bodies import SMALL_BYTES_MAX
from tailrace.gateway.settings import Settings
from tailrace.gateway.turns.draft import Retry, Stored, TurnDraft, WhenDelivered
from tailrace.gateway.turns.optional_steps import OptionalSteps, check_fields
from tailrace.gateway.turns.request_body import MessageParam, NewTurn, PromptUse
from tailrace.gateway.turns.submit import UNCLEAR
from tailrace.proto.entries import Request
from tailrace.proto.errors import LogFull, LogUnavailable, Refused
from tailrace.proto.ids import Seq, Tenant, TurnId, TurnKey
from tailrace.proto.nats import Claim
from tailrace.proto.ownership import WHOLE, Scope
from tailrace.proto.restores import Restore, Restores
from tailrace.testing import MemoryClaims, MemoryLog, MemoryTombstones
from tests.harness.service_builders import NO_STEPS, build_turn_submitter

HELLO = NewTurn(message="hello")


class Services:
    """A log, claims and tombstones."""

    def __init__(self) -> None:
        self.log, self.claims, self.tombstones = MemoryLog(), MemoryClaims(), MemoryTombstones()

    async def delete(self, key: TurnKey) -> None:
        await self.log.purge(key)
        await self.tombstones.put([key])

    async def erase(self, key: TurnKey) -> None:
        """As after the end of a turn with `store: false` that no client has stopped."""
        await self.log.purge(key)
        await self.tombstones.put_erased(key)

    def is_unused(self) -> bool:
        return not (self.log.stored or self.claims.stored)


def submit_to(
    memory: Services,
    steps: OptionalSteps = NO_STEPS,
    *,
    limiter: Limiter | None = None,
    is_full: bool = False,
    is_draining: bool = False,
    settings: Settings | None = None,
) -> Callable[..., Coroutine[Any, Any, Stored]]:
    submitter = build_turn_submitter(
        memory.log,
        memory.claims,
        memory.tombstones,
        steps=steps,
        limiter=limiter,
        is_full=is_full,
        is_draining=is_draining,
        settings=settings,
    )

    async def submit(
        who: Principal,
        new_turn: NewTurn,
        raw: bytes,
        key: str | None = None,
        cursor: Seq | None = None,
        added_bytes: int = 0,
    ) -> Stored:
        return await submitter.submit(TurnDraft(who, raw, key, cursor, added_bytes, new_turn=new_turn))

    return submit


class Reservations(Limiter):
    """Limits whose admission notes whether it was given back."""

    def __init__(self, append_until: float = math.inf) -> None:
        self.is_given_back = False
        self.append_until = append_until

    def admission(self, _: Principal) -> Any:
        async def release() -> None:
            self.is_given_back = True

        async def reserve_turn(_: TurnId, request: Request) -> Request:
            return request

        counts = {"count_request": AsyncMock(), "count_stored_bytes": AsyncMock()}
        given = {"headers": lambda _: {}, "append_until": self.append_until}
        return SimpleNamespace(**given, **counts, reserve_turn=reserve_turn, release=release)


class Retries:
    """The steps of a client that counts its repetitions, with the claim that its POST repeats."""

    def __init__(self, claim: Claim | None) -> None:
        self._claim = claim

    async def find_retry(self, _: TurnDraft) -> Retry:
        return Retry(("retry",), self._claim, self.delivered)

    async def claim_retry(self, *_: object) -> WhenDelivered:
        return self.delivered

    async def delivered(self) -> None:
        """Does nothing."""

    def steps(self) -> OptionalSteps:
        return OptionalSteps(find_retry=self.find_retry, claim_retry=self.claim_retry)


@pytest.mark.parametrize(
    ("new_turn", "key"),
    [
        (NewTurn(message="hi", webhook="https://hooks.example"), None),
        (NewTurn(message="hi", on_disconnect="cancel"), None),
        (NewTurn(message="hi", max_cost=0.01), None),
        (NewTurn(message="hi", on_busy="queue"), None),
        (NewTurn(prompt=PromptUse(name="question")), None),
        (NewTurn(message="hi"), "auto"),
        (NewTurn(messages=[MessageParam("user", [{"type": "container_upload", "file_id": "f"}])]), None),
        (
            NewTurn(
                messages=[
                    MessageParam("user", [{"type": "image", "source": {"type": "file", "file_id": "file-of-operator"}}])
                ]
            ),
            None,
        ),
    ],
    ids=["webhook", "on_disconnect", "max_cost", "on_busy", "prompt", "auto", "container upload", "file"],
)
async def test_a_request_that_needs_an_absent_feature_is_refused(new_turn: NewTurn, key: str | None) -> None:
    """Ignored, it would cost money without what the client wants; a file's id would reach the operator's workspace."""
    memory = Services()
    with pytest.raises(Refused, match="is not supported by this server"):
        await submit_to(memory)(LOCAL, new_turn, b"{}", key)
    assert memory.is_unused()


@pytest.mark.parametrize(("raw_bytes", "added_bytes"), [(SMALL_BYTES_MAX + 1, 0), (2, SMALL_BYTES_MAX)])
async def test_other_tasks_run_while_many_messages_are_checked(raw_bytes: int, added_bytes: int) -> None:
    """Also if the body is small, and names messages that the gateway inserts."""
    new_turn, raw = NewTurn(messages=[MessageParam("user", "hello")] * 20_000), b"x" * raw_bytes
    submit = submit_to(Services(), is_draining=True)
    checking, runs = asyncio.create_task(submit(LOCAL, new_turn, raw, added_bytes=added_bytes)), 0
    while not checking.done():
        runs += 1
        await asyncio.sleep(0)
    # In the event loop's own thread it would be one, and how often the loop gets the GIL beside another is chance.
    assert runs > 1
    with pytest.raises(Refused, match="shutting down"):
        await checking


@pytest.mark.rule("R78")
@pytest.mark.parametrize(
    ("body", "key", "cursor", "tenant", "session", "is_resumed"),
    [
        (b"{}", None, 1, LOCAL.access.tenant, None, True),
        (b"{}", "key", 1, LOCAL.access.tenant, None, True),
        (b"{}", "new with each POST", 1, LOCAL.access.tenant, None, True),
        (b"{}", "other turn", 1, LOCAL.access.tenant, None, False),
        (b"{ }", None, 1, LOCAL.access.tenant, None, False),
        (b"{}", None, 1, Tenant("other"), None, False),
        (b"{}", None, 0, LOCAL.access.tenant, None, False),
        (b"{}", None, 3, LOCAL.access.tenant, None, False),
        # Named in a header, so that the body is the same.
        (b"{}", None, 1, LOCAL.access.tenant, "other", False),
    ],
)
async def test_a_post_with_a_cursor_resumes_its_turn_or_is_refused(
    body: bytes, key: str | None, cursor: int, tenant: Tenant, session: str | None, *, is_resumed: bool
) -> None:
    """It never starts a turn."""
    memory = Services()
    submit = submit_to(memory)
    first = await submit(LOCAL, HELLO, b"{}", "key")
    await submit(LOCAL, HELLO, b"{}", "other turn")
    if is_resumed:
        assert await submit(LOCAL._replace(access=Scope(tenant, WHOLE)), HELLO, body, key, cursor=Seq(cursor)) == first
    else:
        new_turn = msgspec.structs.replace(HELLO, session=session)
        with pytest.raises(Refused) as refused:
            await submit(LOCAL._replace(access=Scope(tenant, WHOLE)), new_turn, body, key, cursor=Seq(cursor))
        assert refused.value.code == "cursor_mismatch"
    assert len(memory.log.stored) == 2


@pytest.mark.rule("R150")
@pytest.mark.rule("R78")
async def test_a_post_with_a_cursor_that_a_restore_has_removed_gets_the_turn_of_its_key() -> None:
    """The number belongs to another entry now, or to none. The stream of the turn then begins with a reset."""
    memory = Services()
    submit = submit_to(memory)
    first = await submit(LOCAL, HELLO, b"first", "key")
    memory.log.restores = Restores([Restore(7, Seq(1))])
    other = await submit(LOCAL, HELLO, b"other")
    lost = memory.log.stored[other.key.plain][0].seq
    assert (await submit(LOCAL, HELLO, b"first", "key", cursor=lost)).key == first.key
    assert (await submit(LOCAL, HELLO, b"other", cursor=Seq(memory.log.restores.offset + lost))).key == other.key
    for body, key in ((b"other", None), (b"other", "new")):
        with pytest.raises(Refused) as refused:
            await submit(LOCAL, HELLO, body, key, cursor=lost)
        assert refused.value.code == "cursor_mismatch"


@pytest.mark.rule("R26")
@pytest.mark.rule("R147")
async def test_a_key_of_a_turn_in_another_session_is_refused() -> None:
    """The session is in a header, so that the body is the same."""
    memory = Services()
    await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
    with pytest.raises(Refused, match="in another session"):
        await submit_to(memory)(LOCAL, msgspec.structs.replace(HELLO, session="other"), b"{}", "key")
    assert len(memory.log.stored) == 1


@pytest.mark.rule("R26")
async def test_the_key_of_an_erased_turn_starts_a_new_turn_once() -> None:
    """Under the old id, its usage and its webhook would count as repetitions of those of the erased turn."""
    memory = Services()
    submit = submit_to(memory)
    turns = []
    for _ in range(3):
        key, entry, _ = await submit(LOCAL, HELLO, b"{}", "key")
        assert (await submit(LOCAL, HELLO, b"{}", "key"), entry.submission) == ((key, entry, None), None)
        turns.append(key)
        await memory.erase(key.plain)
    assert len(set(turns)) == 3
    with pytest.raises(Refused):
        await submit(LOCAL, HELLO, b"{ }", "key")


@pytest.mark.rule("R26")
@pytest.mark.parametrize("is_stored", [True, False])
async def test_of_two_posts_with_the_key_of_an_erased_turn_the_second_gets_the_turn_of_the_first(
    *, is_stored: bool
) -> None:
    """Also if the first gateway dies after its claim."""
    memory = Services()
    erased, *_ = await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
    await memory.erase(erased.plain)
    stale = await memory.claims.find(LOCAL.access.tenant, "key")
    assert stale is not None
    first, *_ = await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
    if not is_stored:
        await memory.log.purge(first.plain)

    async def claim(tenant: Tenant, key: str, mine: Claim) -> Claim:
        del tenant, key, mine
        return stale

    memory.claims.claim = claim  # type: ignore[method-assign]
    second, entry, _ = await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
    assert (second, entry.submission is None) == (first, is_stored)


async def test_the_entries_of_concurrent_posts_with_one_key_differ() -> None:
    """Otherwise both would find their own bytes in the log, and keep the money that each has reserved."""
    memory = Services()
    names = []
    for _ in range(3):
        key, entry, _ = await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
        names.append(entry.submission)
        await memory.log.purge(key.plain)
    assert names[0] is None
    assert len(set(names)) == 3


@pytest.mark.rule("R115")
@pytest.mark.parametrize("state", ["stored", "not stored", "erased", "deleted"])
async def test_a_submission_with_a_claim_but_without_a_key_gets_the_claimed_turn(state: str) -> None:
    """If the turn is not stored, it may still be, by a gateway that is slow. An erased turn's id is not used again.

    A deleted turn stays deleted.
    """
    memory = Services()
    first, *_ = await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
    claim = memory.claims.stored.pop((LOCAL.access.tenant, "key")).claim
    if state == "deleted":
        await memory.delete(first.plain)
        with pytest.raises(Refused) as refused:
            await submit_to(memory, Retries(claim).steps())(LOCAL, HELLO, b"{}")
        assert refused.value.code == "turn_deleted"
        return
    if state == "erased":
        await memory.erase(first.plain)
    elif state == "not stored":
        await memory.log.purge(first.plain)
    turn, entry, _ = await submit_to(memory, Retries(claim).steps())(LOCAL, HELLO, b"{}")
    assert (turn == first) is (state != "erased")
    assert (entry.submission is not None) is (state == "not stored")
    assert entry.submission != turn.turn
    assert (len(memory.log.stored), memory.claims.stored) == (1, {})


async def test_a_claim_that_expires_during_the_submission_does_not_name_its_turn() -> None:
    """A later POST with the key would find no turn under the new claim's id, and store a second one."""
    memory = Services()
    first, *_ = await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
    await memory.log.purge(first.plain)

    async def claim(tenant: Tenant, key: str, mine: Claim) -> Claim:
        await memory.claims.put(tenant, key, mine)
        return mine

    memory.claims.claim = claim  # type: ignore[method-assign]
    second, *_ = await submit_to(memory)(LOCAL, HELLO, b"{}", "key")
    claimed = await memory.claims.find(LOCAL.access.tenant, "key")
    assert claimed is not None
    assert (second.turn, second != first) == (claimed.turn, True)


@pytest.mark.parametrize(
    ("error", "may_be_stored"),
    [
        (LogUnavailable("away"), True),
        (TimeoutError(), True),
        (asyncio.CancelledError(), True),
        (LogFull("full"), False),
    ],
)
async def test_reservations_are_given_back_after_a_clear_refusal_only(
    error: BaseException, *, may_be_stored: bool
) -> None:
    """After an unclear append the turn may be stored, and its end settles them. If not, persistence gives them back."""
    memory, reservations = Services(), Reservations()
    memory.log.append_errors.append(error)
    with pytest.raises((LogUnavailable, LogFull, asyncio.CancelledError)):
        await submit_to(memory, limiter=reservations)(LOCAL, HELLO, b"{}")
    assert reservations.is_given_back is not may_be_stored


@pytest.mark.rule("R137")
async def test_after_a_pause_behind_the_claim_nothing_is_appended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another gateway may have removed the claim meanwhile, and stored a turn in its place."""
    memory, reservations = Services(), Reservations()
    claim = memory.claims.claim

    async def claim_and_pause(tenant: Tenant, key: str, mine: Claim) -> Claim:
        claimed = await claim(tenant, key, mine)
        await asyncio.sleep(0.02)
        return claimed

    monkeypatch.setattr(memory.claims, "claim", claim_and_pause)
    submit = submit_to(memory, limiter=reservations, settings=Settings(accept_timeout_s=0.01))
    with pytest.raises(LogUnavailable):
        await submit(LOCAL, HELLO, b"{}", "key")
    assert not memory.log.stored
    assert reservations.is_given_back


@pytest.mark.rule("R37")
async def test_an_append_ends_when_its_reservation_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Persistence gives back what is reserved for a request that the log does not have by then."""
    memory, tries = Services(), list[float]()
    loop = asyncio.get_running_loop()

    async def append(*_: object) -> None:
        tries.append(loop.time())
        await asyncio.sleep(3600)

    monkeypatch.setattr(memory.log, "append", append)
    for within_s in (1.0, -0.01):
        reservations = Reservations(loop.time() + within_s)
        with pytest.raises(LogUnavailable):
            await submit_to(memory, limiter=reservations)(LOCAL, HELLO, b"{}")
        assert loop.time() < reservations.append_until + 1
        # The first one may be stored.
        assert reservations.is_given_back is (within_s < 0)
    assert len(tries) == 1


@pytest.mark.parametrize("key", [None, "key"])
async def test_only_with_a_key_a_client_may_repeat_a_post_after_an_unclear_append(key: str | None) -> None:
    memory = Services()
    memory.log.append_errors.append(LogUnavailable("away"))
    with pytest.raises(LogUnavailable) as unclear:
        await submit_to(memory)(LOCAL, HELLO, b"{}", key)
    assert (str(unclear.value), unclear.value.may_repeat) == (UNCLEAR, key is not None)


@pytest.mark.rule("R115")
async def test_a_client_may_repeat_a_post_whose_turn_it_can_find_without_a_key() -> None:
    memory = Services()
    memory.log.append_errors.append(LogUnavailable("away"))

    with pytest.raises(LogUnavailable) as unclear:
        await submit_to(memory, Retries(None).steps())(LOCAL, HELLO, b"{}")
    assert unclear.value.may_repeat


async def test_a_full_log_and_a_draining_gateway_store_nothing() -> None:
    """A draining gateway claims no key either. A repeated POST needs no room in the log."""
    memory = Services()
    with pytest.raises(LogFull):
        await submit_to(memory, is_full=True)(LOCAL, HELLO, b"{}")
    stored = Services()
    first = await submit_to(stored)(LOCAL, HELLO, b"{}", "key")
    assert await submit_to(stored, is_full=True)(LOCAL, HELLO, b"{}", "key") == first
    with pytest.raises(Refused) as refused:
        await submit_to(memory, is_draining=True)(LOCAL, HELLO, b"{}", "key")
    assert (refused.value.code, memory.is_unused()) == ("draining", True)


@pytest.mark.parametrize(
    ("new_turn", "step"),
    [
        (NewTurn(message="hi"), None),
        (NewTurn(message="hi", on_busy="interrupt"), None),
        (NewTurn(message="hi", on_busy="branch"), None),
        (NewTurn(message="hi", webhook="https://hooks.example"), "check_webhook"),
        (NewTurn(message="hi", on_disconnect="cancel"), "check_on_disconnect"),
        (NewTurn(message="hi", max_cost=0.0), "check_max_cost"),
        (NewTurn(message="hi", on_busy="queue"), "check_queue"),
    ],
)
def test_a_check_runs_only_for_a_turn_with_its_field(new_turn: NewTurn, step: str | None) -> None:
    ran: list[str] = []
    steps = OptionalSteps(
        check_webhook=lambda _: ran.append("check_webhook"),
        check_on_disconnect=lambda _: ran.append("check_on_disconnect"),
        check_max_cost=lambda _: ran.append("check_max_cost"),
        check_queue=lambda _: ran.append("check_queue"),
    )
    check_fields(steps, new_turn)
    assert ran == ([] if step is None else [step])
