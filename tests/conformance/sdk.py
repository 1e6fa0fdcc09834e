"""The judge: the message that the vendor's own SDK accumulates from a stream."""

from functools import cache
from typing import Any

import anthropic
import httpx2

from tests.harness.turn_builder import MODEL


def accumulate(stream: bytes) -> dict[str, Any]:
    """Returns the message of a stream, as far as it goes. Raises what the SDK raises."""
    playback = _playback()
    playback.stream = stream
    question: Any = [{"role": "user", "content": "x"}]
    with playback.client.beta.messages.stream(model=MODEL, max_tokens=1, messages=question) as accumulated:
        # Without warnings of blocks whose type the SDK does not know.
        return accumulated.get_final_message().to_dict(mode="json", warnings=False)


class _Playback:
    """A client of the SDK whose next response has the body `stream`."""

    def __init__(self) -> None:
        self.stream = b""
        http = httpx2.Client(transport=httpx2.MockTransport(self._respond))
        self.client = anthropic.Anthropic(api_key="sk-any", http_client=http, max_retries=0)

    def _respond(self, _: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=self.stream)


@cache
def _playback() -> _Playback:
    return _Playback()
