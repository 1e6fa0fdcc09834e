"""The judge: the message that the vendor's own SDK accumulates from a stream."""

from typing import Any

import anthropic
import httpx2

from tests.harness.turn_builder import MODEL


def accumulate(stream: bytes) -> dict[str, Any]:
    """Returns the message of a stream, as far as it goes. Raises what the SDK raises."""
    answered = httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=stream)
    transport = httpx2.MockTransport(lambda _: answered)
    with (
        httpx2.Client(transport=transport) as http,
        anthropic.Anthropic(api_key="sk-any", http_client=http, max_retries=0) as client,
        client.beta.messages.stream(
            model=MODEL, max_tokens=1, messages=[{"role": "user", "content": "x"}]
        ) as accumulated,
    ):
        # Without warnings of blocks whose type the SDK does not know.
        return accumulated.get_final_message().to_dict(mode="json", warnings=False)
