"""Output of nats-server: which lines are shown, and the log file."""

from pathlib import Path

import pytest

from tailrace.deploy.local import nats_log
from tailrace.deploy.local.nats_log import FILE, NatsLogFile

BEGIN = "[27164] 2026/11/20 22:27:10.638206 "


@pytest.mark.parametrize(
    ("line", "is_shown"),
    [
        (f"{BEGIN}[INF] Starting nats-server", False),
        (f"{BEGIN}[INF]", False),
        (f"{BEGIN}[INF] Server is ready", True),
        (f"{BEGIN}[INF] 127.0.0.1:40250 - rid:12 - Route connection created", False),
        (f"{BEGIN}[WRN] Plaintext passwords detected, use nkeys or bcrypt", False),
        (f"{BEGIN}[ERR] Error trying to connect to route (attempt 1): dial tcp 127.0.0.1:1: refused", False),
        (f"{BEGIN}[WRN] Failed to install snapshot for '$G > TURNS > x' [C-R3F-g]: store is closed", False),
        (f"{BEGIN}[WRN] Failed to install snapshot for '$G > TURNS > x' [C-R3F-g]: no space left on device", True),
        (f"{BEGIN}[ERR] JetStream failed to store a msg on stream '$G > TURNS': no space left on device", True),
        (f"{BEGIN}[WRN] JetStream cluster stream '$G > TURNS' has NO quorum, stalled", True),
        (f"{BEGIN}[FTL] Can't listen for clients: address already in use", True),
        ("nats-server: /x/nats.conf:3:1: unknown field", True),
    ],
)
def test_unexpected_warnings_are_shown_and_normal_ones_are_not(line: str, *, is_shown: bool) -> None:
    """The servers of a cluster report errors until they have found each other."""
    assert nats_log.is_shown(line) == is_shown


def test_the_log_file_is_rotated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last lines are always there; the two files have at most twice the limit."""
    monkeypatch.setattr("tailrace.deploy.local.nats_log.FILE_BYTES_MAX", 40)
    lines = NatsLogFile(tmp_path)
    for number in range(100):
        lines.write(f"line {number}")
    files = [tmp_path / f"{FILE}.1", tmp_path / FILE]
    kept = "".join(file.read_text() for file in files if file.exists()).splitlines()
    assert kept == [f"line {number}" for number in range(100)][-len(kept) :]
    assert sorted(tmp_path.iterdir()) == sorted(file for file in files if file.exists())
    assert all(file.stat().st_size < 60 for file in tmp_path.iterdir())


def test_a_line_that_cannot_be_written_is_still_shown(tmp_path: Path) -> None:
    """The disk may be full, and the line may say so."""
    assert NatsLogFile(tmp_path / "gone").write("panic: no space left on device")
