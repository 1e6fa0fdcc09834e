"""The receiver in examples/: it accepts what Tailrace signs, once, and nothing else."""

import subprocess
import sys
import time

import httpx2

from tailrace.deploy.local.ports import find_free
from tailrace.features.webhooks import signature
from tailrace.proto.ids import Tenant
from tests.harness.processes import CHECKOUT

BODY = b'{"type":"turn.completed","data":{"turn":"turn-1","outcome":"completed"}}'


def test_the_example_accepts_a_signed_webhook_once_and_refuses_others() -> None:
    """Another secret, another body and an old request get 401."""
    secret, other = (signature.derive_secret(key, Tenant("local")) for key in (b"k" * 32, b"l" * 32))
    [port] = find_free(1)
    process = subprocess.Popen(
        [sys.executable, CHECKOUT / "examples/webhook_receiver.py"],
        env={"SECRET": signature.format_secret(secret), "PORT": str(port)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with process, httpx2.Client(transport=httpx2.HTTPTransport(retries=8), trust_env=False) as client:

        def status(*secrets: bytes, at: int, body: bytes = BODY) -> int:
            headers = signature.sign("turn-1", at, BODY, secrets)
            return client.post(f"http://127.0.0.1:{port}/", content=body, headers=headers).status_code

        try:
            now = int(time.time())
            assert [status(other, at=now), status(secret, at=now, body=b"{}"), status(secret, at=now - 999)] == [
                401
            ] * 3
            assert [status(secret, at=now), status(other, secret, at=now)] == [204, 204]
        finally:
            process.terminate()
        assert process.stdout is not None
        assert process.stdout.read() == "turn.completed turn-1 completed\n"
