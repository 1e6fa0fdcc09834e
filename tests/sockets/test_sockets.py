"""The bytes of the model's socket reach the fold, whatever their sizes, pieces and timing.

`python -m tests.sockets` plays more examples.
"""

import asyncio
import time
from collections.abc import Iterator

import pytest

from tailrace.generators.backends.http_client import TimedBody
from tests.harness.certificates import make_self_signed
from tests.sockets.example import make_example
from tests.sockets.model_server import ModelServer
from tests.sockets.play import play

SEEDS = 60
PER_TEST = 15
# In 30 examples, one loses events without the guard of `TimedBody`.
SEEDS_WITHOUT_GUARD = 30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    """A server whose certificate is trusted."""
    certificate = make_self_signed(tmp_path_factory.mktemp("tls"), "localhost")
    with pytest.MonkeyPatch.context() as patched, ModelServer(certificate) as server:
        patched.setenv("SSL_CERT_FILE", str(certificate[0]))
        yield server


@pytest.mark.rule("R6")
@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, SEEDS, PER_TEST))
async def test_an_answer_is_stored_as_the_sdk_accumulates_it(server: ModelServer, nats_url: str, first: int) -> None:
    """Events of 1 byte to 8 MB, in random pieces, with pauses, bursts, cuts, kills and cancels."""
    for seed in range(first, first + PER_TEST):
        assert await play(make_example(seed), server, nats_url) == [], f"seed {seed}"


async def _hold_the_loop() -> None:
    """Lets pieces of an answer pile up, as on a busy machine."""
    while True:
        await asyncio.sleep(0.001)
        time.sleep(0.01)  # noqa: ASYNC251  # on purpose


@pytest.mark.rule("R139")
@pytest.mark.timeout(120)
async def test_a_turn_that_has_lost_events_fails(
    server: ModelServer, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fault of 3cb176d4 put back: a piece that arrives before the task wakes replaces the result of the one before.

    The checks of the answer find it: no turn is `completed` with a part of its text.
    """

    def take(self: TimedBody) -> bool:
        while piece := self._read_buffer():
            try:
                self._found = self._receive(piece)
            except Exception as error:  # noqa: BLE001  # as the product does
                self._errors.append(error)
        return self._found is not None or bool(self._errors)

    monkeypatch.setattr(TimedBody, "_take", take)
    found = list[list[str]]()
    busy = asyncio.create_task(_hold_the_loop())
    # Further examples may be needed until two pieces arrive before the task wakes.
    for seed in range(4 * SEEDS_WITHOUT_GUARD):
        if seed >= SEEDS_WITHOUT_GUARD and any(wrong[0].startswith("events_lost: ") for wrong in found if wrong):
            break
        example = make_example(seed)
        if example.fault == "none":
            found.append(await play(example, server, nats_url))
    busy.cancel()
    assert [wrong for wrong in found if wrong and wrong[0].startswith("events_lost: ")]
    # A loss of the last events alone breaks the answer off, and is repaired by a second call.
    damaged = [wrong for wrong in found if any(" instead of " in line for line in wrong)]
    assert [wrong for wrong in damaged if "failed" not in wrong] == []
