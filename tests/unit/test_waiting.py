"""The wait at the start of a process: which errors it outlasts, its log lines, and what systemd is told."""

import asyncio
from pathlib import Path
from socket import AF_UNIX, SOCK_DGRAM, socket

import pytest
from structlog.testing import capture_logs

from tailrace.proto import waiting
from tailrace.proto.errors import (
    CredentialMissing,
    LogIncomplete,
    LogMisconfigured,
    LogRefused,
    LogUnavailable,
    SettingsInvalid,
    StoreBusy,
    StoreTooNew,
    StoreUnwritable,
    TailraceError,
)
from tailrace.proto.service import mark_ready
from tailrace.proto.waiting import HEALTH, WAITING, wait_for


class Attempts:
    """Fails with each of `errors` in turn, then returns 7."""

    def __init__(self, *errors: TailraceError) -> None:
        self.errors = list(errors)

    async def __call__(self) -> int:
        if self.errors:
            raise self.errors.pop(0)
        return 7


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "RETRY_S", 0.001)
    monkeypatch.setattr(HEALTH, "is_ready", False)


@pytest.mark.parametrize(
    ("error", "awaited"),
    [
        (LogUnavailable("a"), "nats-server"),
        (LogIncomplete("a"), "the streams in NATS"),
        (StoreBusy("a"), "the database"),
        (StoreUnwritable("a"), "the database"),
        (CredentialMissing("a"), "an API key"),
    ],
)
async def test_it_waits_for_what_others_can_provide(error: TailraceError, awaited: str) -> None:
    seen = list[str]()

    async def attempt() -> int:
        seen.append(HEALTH.readiness_fault())
        if len(seen) < 3:
            raise error
        assert WAITING._value.get() == 1  # noqa: SLF001
        return 7

    assert await wait_for(attempt, asyncio.Event()) == 7
    assert seen == ["starting", f"waiting for {awaited}", f"waiting for {awaited}"]
    assert (HEALTH.readiness_fault(), WAITING._value.get()) == ("starting", 0)  # noqa: SLF001


@pytest.mark.parametrize("kind", [LogRefused, LogMisconfigured, StoreTooNew, SettingsInvalid])
async def test_it_does_not_wait_for_what_only_a_change_repairs(kind: type[TailraceError]) -> None:
    with pytest.raises(kind):
        await wait_for(Attempts(LogUnavailable("a"), kind("a")), asyncio.Event())


@pytest.mark.parametrize(("log_every_s", "lines"), [(30.0, 1), (0.0, 50)])
async def test_a_wait_is_logged_at_most_once_in_an_interval(
    monkeypatch: pytest.MonkeyPatch, log_every_s: float, lines: int
) -> None:
    monkeypatch.setattr(waiting, "LOG_EVERY_S", log_every_s)
    with capture_logs() as logged:
        await wait_for(Attempts(*[LogUnavailable("why")] * 50), asyncio.Event())
    line = {"event": "waiting for nats-server", "error": "why", "log_level": "warning"}
    assert logged == [line] * lines


async def test_a_stop_ends_the_wait_also_during_an_attempt() -> None:
    stop, begun = asyncio.Event(), asyncio.Event()

    async def attempt() -> bool:
        begun.set()
        return await asyncio.Event().wait()

    waits = asyncio.create_task(wait_for(attempt, stop))
    await begun.wait()
    stop.set()
    assert await asyncio.wait_for(waits, 5) is None


async def test_clients_are_answered_from_the_first_failure_to_the_end_of_the_wait() -> None:
    """Most starts wait for nothing: their port is opened once."""
    answered = list[str]()

    async def meanwhile(over: asyncio.Event) -> None:
        answered.append("begins")
        await over.wait()
        answered.append("ends")

    await wait_for(Attempts(), asyncio.Event(), meanwhile)
    assert answered == []
    await wait_for(Attempts(LogUnavailable("a"), LogUnavailable("a")), asyncio.Event(), meanwhile)
    assert answered == ["begins", "ends"]


async def test_an_error_of_the_answers_ends_the_wait() -> None:
    async def meanwhile(_: asyncio.Event) -> None:
        raise SettingsInvalid("a port")

    with pytest.raises(SettingsInvalid, match="a port"):
        await wait_for(Attempts(*[LogUnavailable("a")] * 99), asyncio.Event(), meanwhile)


@pytest.mark.parametrize("is_abstract", [False, True])
async def test_systemd_is_told_what_the_start_waits_for_and_when_it_is_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_abstract: bool
) -> None:
    name = str(tmp_path / "notify")
    with socket(AF_UNIX, SOCK_DGRAM) as systemd:
        systemd.bind(f"\0{name}" if is_abstract else name)
        systemd.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if is_abstract else name)
        await wait_for(Attempts(LogUnavailable("two\nlines")), asyncio.Event())
        assert systemd.recv(999) == b"STATUS=waiting for nats-server: two lines"
        mark_ready()
        assert systemd.recv(999) == b"READY=1\nSTATUS=ready"


def test_without_systemd_or_after_it_has_gone_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    mark_ready()
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    mark_ready()
