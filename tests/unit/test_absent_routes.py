"""Advice for routes of other APIs that do not exist here."""

import time

import pytest

from tailrace.gateway.app import ROUTES
from tailrace.gateway.http.absent_routes import advice_for


@pytest.mark.parametrize(
    ("path", "advice"),
    [
        ("/v1/embeddings", "Claude has no embeddings"),
        ("/v1/images/generations", "Claude makes no images"),
        ("/v1/audio/speech/", "Claude has no speech"),
        ("/v1/uploads/upload_1/parts", "POST /v1/files"),
        ("/v1/conversations/conv_1", "previous_response_id"),
        ("/v1/vector_stores/vs_1", "send the passages"),
        ("/v1/agents/agent_1", "in your own program"),
        ("/v1/completions", "POST /v1/chat/completions"),
        ("/v1/chat/completions/chatcmpl-1/messages", "/v1/turns/{turn}"),
        ("/v1/chat/completions", None),
        ("/v1/v1/messages", "has no /v1"),
        ("/chat/completions", "ends with /v1"),
        ("/messages", "ends with /v1"),
        ("/api/completion", "`useChat`"),
        ("/v1/filesystem", None),
        ("/v1", None),
        ("/", None),
        ("", None),
    ],
)
def test_the_advice_is_that_of_the_nearest_parent(path: str, advice: str | None) -> None:
    found = advice_for(path)
    assert found is None if advice is None else found is not None and advice in found


def test_no_advice_is_given_for_a_route_that_exists() -> None:
    """Otherwise its errors would contradict it."""
    assert [route.path for route in ROUTES if advice_for(route.path) is not None] == []


@pytest.mark.rule("S14")
def test_the_longest_path_is_looked_up_at_once() -> None:
    """Without a key, a path of 60,000 slashes would stop all streams."""
    began = time.process_time()
    assert advice_for("/" * 60_000) is None
    assert time.process_time() - began < 0.05
