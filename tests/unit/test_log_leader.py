"""The leader of the log in the output of `up` and of `tailrace status`."""

import io
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import AsyncMock

import pytest

from tailrace.deploy.cli.status import NatsStatus, Status, render
from tailrace.deploy.local.console import Console
from tailrace.deploy.local.nats_cluster import new_specs
from tailrace.deploy.local.watch import SetupRepair
from tailrace.proto.nats.setup_state import SetupState


@pytest.mark.parametrize(
    ("leaders", "lines"),
    [
        (["nats-2", "nats-2", "", "nats-1"], ["nats-2 leads the log", "nats-1 leads the log, before nats-2"]),
        (["nats-2", "", "nats-2"], ["nats-2 leads the log"]),
        (["", ""], []),
    ],
)
async def test_up_prints_each_new_leader_of_the_log_once(
    leaders: list[str], lines: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an election runs, there is no leader. One server alone has none."""
    states: Iterator[SetupState] = iter([SetupState(origin="created", leader=leader) for leader in leaders])
    connection = AsyncMock()
    connection.closed.is_set = lambda: False
    monkeypatch.setattr("tailrace.deploy.local.watch.Connection.open", AsyncMock(return_value=connection))
    monkeypatch.setattr("tailrace.deploy.local.watch.read_setup_state", AsyncMock(side_effect=lambda _: next(states)))
    out = io.StringIO()
    specs = new_specs(tmp_path, sync="default", file_bytes_max=1)
    repair = SetupRepair("nats://x", Console(out, width=2, coloured=False), specs)
    for _ in leaders:
        await repair.check()
    assert out.getvalue().splitlines() == [f"up | {line}" for line in lines]


def test_status_names_the_leader_of_the_log() -> None:
    nats = NatsStatus(
        version="2.12.6",
        leader="nats-2",
        missing=[],
        behind=[],
        processes_missing=[],
        log_fullness=0,
        blobs_fullness=0,
        queued=0,
        running=0,
        unrecorded=0,
        generators=1,
        generator_slots_free=1,
        generators_detail="",
        is_degraded=False,
        persistence=True,
        persistence_detail="",
    )
    status = Status(
        ok=True,
        state="healthy",
        version="0.1.0",
        up_version="",
        url="",
        processes=[],
        nats=nats,
        nats_error="",
        problems=[],
    )
    assert "  2.12.6, nats-2 leads the log\n" in render(status)
