"""The receiver in examples/: it accepts what Tailrace signs, stores each turn once, and nothing else."""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from tailrace.deploy.local.ports import find_free
from tailrace.features.webhooks import payload, signature
from tailrace.proto.ids import Tenant
from tailrace.proto.records import record_from_fold
from tests.harness.processes import CHECKOUT
from tests.harness.turn_builder import KEY, completed_turn

BODY = payload.render(record_from_fold(KEY, completed_turn("Light scatters.").turn))
SECRET, OTHER = (signature.derive_secret(key, Tenant("local")) for key in (b"k" * 32, b"l" * 32))


@contextmanager
def receiver(port: int, database: Path) -> Iterator[subprocess.Popen[str]]:
    """Runs the example, and kills it at the end."""
    process = subprocess.Popen(
        [sys.executable, CHECKOUT / "examples/webhook_receiver.py"],
        env={"SECRET": signature.format_secret(SECRET), "PORT": str(port), "DATABASE": str(database)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_the_example_stores_a_signed_webhook_once_over_a_kill_and_refuses_others(tmp_path: Path) -> None:
    """Another secret, another body and an old request get 401. A webhook comes again if its response is lost."""
    [port] = find_free(1)
    database, now = tmp_path / "answers.db", int(time.time())
    client = httpx2.Client(transport=httpx2.HTTPTransport(retries=8), trust_env=False)

    def status(*secrets: bytes, at: int, body: bytes = BODY) -> int:
        headers = signature.sign(KEY.turn, at, BODY, secrets)
        return client.post(f"http://127.0.0.1:{port}/", content=body, headers=headers).status_code

    with client, receiver(port, database) as first:
        refused = [status(OTHER, at=now), status(SECRET, at=now, body=b"{}"), status(SECRET, at=now - 999)]
        assert refused == [401] * 3
        assert [status(SECRET, at=now), status(OTHER, SECRET, at=now)] == [204, 204]
        first.kill()
        assert first.stdout is not None
        assert first.stdout.read() == f"turn.completed {KEY.turn} completed\n"
        with receiver(port, database) as second:
            assert status(SECRET, at=now) == 204
            second.kill()
            assert second.stdout is not None
            assert second.stdout.read() == ""
    with sqlite3.connect(database) as stored:
        rows = stored.execute("select turn, outcome, answer from answers").fetchall()
    assert rows == [(KEY.turn, "completed", "Light scatters.")]
