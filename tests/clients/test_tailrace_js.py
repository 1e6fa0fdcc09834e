"""web/tailrace.js, besides what the client matrix tests."""

import gzip

from tests.clients import node
from tests.harness.processes import CHECKOUT
from tests.integration.conftest import KEY, Gateway


async def test_to_stop_reading_does_not_cancel_and_refusals_are_errors_with_a_code(gateway: Gateway) -> None:
    (seen,) = await node.run("tailrace.mjs", gateway.url, KEY)
    assert seen == {
        "stopped": ["AbortError", None, None],
        "isRunning": "running",
        "cancelled": "cancelled",
        "end": "cancelled",
        "isWhole": True,
        "nothing": None,
        "aborted": ["AbortError", None, None],
        "refused": ["TailraceError", 400, "request_invalid"],
        "unknown": ["TailraceError", 404, "turn_not_found"],
        "isError": True,
    }


def test_the_module_has_less_than_5_kb_compressed() -> None:
    assert len(gzip.compress((CHECKOUT / "web/tailrace.js").read_bytes())) < 5000
