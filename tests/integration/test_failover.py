"""When a backend fails, the next goes on from what there is, on the same stream; and no call is made that was not due.

Two simulated Claudes: `claude` asks the first, which breaks as it is told; `bedrock` the second, which never does.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL

import pytest
from anthropic.lib.aws._auth import _get_session

from tailrace.deploy.local.nats_server import NatsServer
from tailrace.deploy.local.ports import find_free
from tailrace.deploy.simulated_claude.server import serving
from tailrace.proto.ids import Tenant
from tailrace.proto.nats import Connection, TurnLog
from tailrace.proto.records import GetTurn, TurnRecord
from tests.harness import processes, readers
from tests.harness.cloud_endpoints import Cloud, cloud
from tests.harness.generator_in_loop import ask, attempts, ended, is_acknowledged, shorten_lease, stats, words, working
from tests.harness.killable_generator import killed_after
from tests.harness.persistence_in_loop import Persistence
from tests.harness.until import until
from tests.integration.conftest import NewGateway
from tests.promises import Story, judge

BOTH = "claude, bedrock"
LEASE_S = 0.2


@pytest.fixture
async def claude() -> AsyncIterator[str]:
    """The address of the first simulated Claude."""
    async with serving() as url:
        yield url


@pytest.fixture
async def second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cloud]:
    """The second one, behind Bedrock's door, where no directive breaks it."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    _get_session.cache_clear()  # type: ignore[attr-defined]
    async with cloud(tmp_path, is_kind=True) as there:
        for name, value in there.environ.items():
            monkeypatch.setenv(name, value)
        yield there


async def asked_of(log: TurnLog, key: object) -> list[tuple[str, str]]:
    return [(attempt.backend, attempt.mode) for attempt in await attempts(log, key)]  # type: ignore[arg-type]


@pytest.mark.rule("R50")
@pytest.mark.parametrize("kind", ["429", "500", "529", "error", "cut", "stall", "eof", "garbage"])
async def test_in_mid_sentence_the_next_backend_goes_on(
    own_server: NatsServer, own_log: TurnLog, claude: str, second: Cloud, kind: str
) -> None:
    """Whatever breaks the first: the text is whole, byte for byte, and each backend was called once."""
    async with working(own_server.url, claude, backends=BOTH):
        key = await ask(own_log, f"words=90 rate=400 fault={kind}@40")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome, turn.attempt) == (words(90), "completed", 2)
    assert [(block.type, block.is_closed) for block in turn.blocks] == [("text", True)]
    assert await asked_of(own_log, key) == [("claude", "fresh"), ("bedrock", "continue")]
    there = await stats(second.url)
    assert ((await stats(claude))["calls"], there["calls"]) == (1, 1)
    assert (there["continuations"], there["continuations_mismatched"]) == (1, 0)


@pytest.mark.parametrize("line", ["fault=529", "fault=500", "fault=html", "fault=429 retry_after=3600"])
async def test_before_the_first_word_the_next_backend_answers(
    own_server: NatsServer, own_log: TurnLog, claude: str, second: Cloud, line: str
) -> None:
    """The first one's calls are used up, no more; a wish to come back in an hour is not waited for."""
    async with working(own_server.url, claude, backends=BOTH, call_tries_max=3):
        key = await ask(own_log, f"words=20 rate=0 {line}")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome) == (words(20), "completed")
    assert await asked_of(own_log, key) == [("claude", "fresh"), ("bedrock", "fresh")]
    assert (await stats(claude))["calls"] == (1 if "3600" in line else 3)
    assert (await stats(second.url))["calls"] == 1


@pytest.mark.parametrize("given", [{"anthropic_api_key": "bad-key"}, {"anthropic_base_url": ""}])
async def test_a_refused_key_and_nobody_there_are_failed_over(
    own_server: NatsServer, own_log: TurnLog, claude: str, second: Cloud, given: dict[str, str]
) -> None:
    """What the first backend misses, the second may have."""
    if "anthropic_base_url" in given:
        given = {"anthropic_base_url": f"http://127.0.0.1:{find_free(1)[0]}"}
    async with working(own_server.url, claude, backends=BOTH, call_tries_max=2, **given):
        turn = await ended(own_log, key := await ask(own_log, "words=20 rate=0"))
    assert (turn.text, turn.outcome) == (words(20), "completed")
    assert await asked_of(own_log, key) == [("claude", "fresh"), ("bedrock", "fresh")]


@pytest.mark.rule("R50")
async def test_a_bad_request_is_not_asked_again(
    own_server: NatsServer, own_log: TurnLog, claude: str, second: Cloud
) -> None:
    """The next one would say the same."""
    async with working(own_server.url, claude, backends=BOTH):
        key = await ask(own_log, "words=x")
        turn = await ended(own_log, key)
    assert turn.error is not None
    assert (turn.outcome, turn.error.code) == ("failed", "backend_refused_request")
    assert await asked_of(own_log, key) == [("claude", "fresh")]
    assert second.asked == []


@pytest.mark.rule("R50")
async def test_attempts_and_calls_have_an_end(
    own_server: NatsServer, own_log: TurnLog, claude: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both fail, again and again: attempts are counted over all backends, and what was said is kept."""
    async with cloud(tmp_path) as unkind:
        for name, value in unkind.environ.items():
            monkeypatch.setenv(name, value)
        _get_session.cache_clear()  # type: ignore[attr-defined]
        async with working(own_server.url, claude, backends=BOTH, attempts_max=4):
            key = await ask(own_log, "words=90 rate=0 fault=cut@5x9")
            turn = await ended(own_log, key)
        assert turn.error is not None
        assert (turn.outcome, turn.error.code, turn.attempt) == ("failed", "attempts_exhausted", 4)
        assert turn.text
        assert words(90).startswith(turn.text)
        assert [backend for backend, _ in await asked_of(own_log, key)] == ["claude", "bedrock"] * 2
        assert (await stats(claude))["calls"] + (await stats(unkind.url))["calls"] == 4


async def test_a_second_that_is_of_no_use_leaves_the_first_its_next_try(
    own_server: NatsServer, own_log: TurnLog, claude: str, second: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong secret in the second place must not make the list worse than the first alone."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    async with working(own_server.url, claude, backends=BOTH):
        key = await ask(own_log, "words=61 rate=0 fault=cut@40x1")
        turn = await ended(own_log, key)
    assert (turn.text, turn.outcome) == (words(61), "completed")
    asked = [("claude", "fresh"), ("bedrock", "continue"), ("claude", "continue")]
    assert await asked_of(own_log, key) == asked


async def test_a_model_may_have_a_list_of_its_own(
    own_server: NatsServer, own_log: TurnLog, claude: str, second: Cloud
) -> None:
    """With the backend's own name for it; the others have the common list."""
    lists = "claude; claude-haiku-5-5 = bedrock:eu.anthropic.claude-haiku-5-5"
    async with working(own_server.url, claude, backends=lists):
        one = await ask(own_log, "words=3 rate=0", model="claude-haiku-5-5")
        other = await ask(own_log, "words=3 rate=0")
        assert [(await ended(own_log, key)).text for key in (one, other)] == [words(3)] * 2
    assert (await asked_of(own_log, one), await asked_of(own_log, other)) == (
        [("bedrock", "fresh")],
        [("claude", "fresh")],
    )
    assert [asked.body["model"] for asked in second.asked] == ["eu.anthropic.claude-haiku-5-5"]


async def test_the_first_backend_dies_in_mid_sentence_and_no_reader_notices(
    own_server: NatsServer,
    own_connection: Connection,
    own_log: TurnLog,
    second: Cloud,
    new_gateway: NewGateway,
    tenant: Tenant,
    tmp_path: Path,
) -> None:
    """kill -9 of the first Claude: its HTTP reader gets every byte, once, and the five promises hold."""
    gateway = await new_gateway(own_server.url)
    async with (
        Persistence(own_server.url, tmp_path / "tailrace.db") as persistence,
        processes.simulated_claude(tmp_path) as first,
        working(own_server.url, first.url, backends=BOTH, call_tries_max=2),
    ):
        key = await ask(own_log, "words=120 rate=60", tenant=tenant)
        reader = asyncio.create_task(readers.read(gateway.client, key.turn))

        async def is_told() -> bool:
            return len((await own_log.turn(key)).text) >= 100

        await until(is_told)
        await first.stop(SIGKILL)
        turn = await ended(own_log, key)
        seen = readers.reader("there", key, await reader)
        record = await persistence.ask(tenant, "turn", GetTurn(key.turn), TurnRecord)
        history = await readers.history(own_log, key, seen, records={key: record})
    assert (turn.text, turn.outcome, turn.attempt) == (words(120), "completed", 2)
    assert await asked_of(own_log, key) == [("claude", "fresh"), ("bedrock", "continue")]
    assert seen.told == Story(words(120), turn.usage, "completed")
    verdict = judge(history)
    assert verdict.is_green, verdict.evidence
    there = await stats(second.url)
    assert (there["calls"], there["continuations_mismatched"]) == (1, 0)


@pytest.mark.rule("R50")
@pytest.mark.timeout(120)
async def test_killed_after_any_entry_of_a_fail_over_the_turn_is_whole(
    own_server: NatsServer, own_connection: Connection, own_log: TurnLog, claude: str, second: Cloud
) -> None:
    """The backend breaks, and its generator dies after the 1st, 2nd, 3rd … entry: one more call, and the same text."""
    await shorten_lease(own_connection, LEASE_S)
    environ = dict(second.environ)
    for appends in range(1, 99):
        calls = (await stats(claude))["calls"] + (await stats(second.url))["calls"]
        key = await ask(own_log, "words=8 rate=200 fault=cut@3", tenant=Tenant(f"t{appends}"))
        is_harmed = await killed_after(appends, own_server.url, claude, BOTH, environ)
        async with working(own_server.url, claude, backends=BOTH):
            turn = await ended(own_log, key)
            await until(lambda: is_acknowledged(own_connection))
        assert (turn.text, turn.outcome, turn.skipped) == (words(8), "completed", 0), appends
        assert turn.attempt <= 3
        assert (await stats(claude))["calls"] + (await stats(second.url))["calls"] - calls <= turn.attempt
        if not is_harmed:
            break
    assert appends > 8
    assert turn.attempt == 2
    assert (await stats(second.url))["continuations_mismatched"] == 0
