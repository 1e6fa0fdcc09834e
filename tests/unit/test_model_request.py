"""The request of a model call, which the backend `claude` builds from an earlier one of the SDK."""

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from tailrace.generators.backends.anthropic_api import HEADS_MAX, AnthropicApi

MODEL = "http://model.test:1/base"


class Silence(httpx2.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[httpx2.Request]:
    """The requests that were sent, each of which is answered with status 200."""
    requests: list[httpx2.Request] = []

    async def send(_: httpx2.AsyncClient, request: httpx2.Request, **__: object) -> httpx2.Response:
        requests.append(request)
        return httpx2.Response(200, stream=Silence(), request=request)

    monkeypatch.setattr(httpx2.AsyncClient, "send", send)
    return requests


async def post(api: AnthropicApi, body: bytes, **headers: str) -> None:
    await api.post("/v1/messages", [body], {"content-type": "application/json", **headers})


def describe(request: httpx2.Request) -> tuple[str, str, dict[str, str], bytes, dict[str, Any]]:
    return request.method, str(request.url), dict(request.headers), request.content, request.extensions


@pytest.mark.parametrize("headers", [{}, {"anthropic-beta": "files-api-2025-04-14", "anthropic-version": "2023-01-01"}])
async def test_a_request_that_is_built_from_an_earlier_one_is_that_of_the_sdk(
    sent: list[httpx2.Request], headers: dict[str, str]
) -> None:
    """Address, headers and time limits are the same, the body is its own. Other betas have headers of their own."""
    used, new = (AnthropicApi("sk-key", MODEL, connect_timeout_s=1, stall_timeout_s=2) for _ in range(2))
    await post(used, b"another one", **{"anthropic-beta": "other-2025-01-01"})
    await post(used, b"the first", **headers)
    await post(used, b"longer than the first", **headers)
    await post(new, b"longer than the first", **headers)
    assert describe(sent[2]) == describe(sent[3])
    assert (str(sent[2].url), sent[2].headers["content-length"]) == (f"{MODEL}/v1/messages", "21")
    assert (sent[2].headers["authorization"], sent[2].headers.get("anthropic-beta")) == (
        "Bearer sk-key",
        headers.get("anthropic-beta"),
    )


async def test_few_kinds_of_requests_are_kept(sent: list[httpx2.Request]) -> None:
    """Clients choose the betas."""
    api = AnthropicApi("sk-key", MODEL, connect_timeout_s=1, stall_timeout_s=2)
    for number in range(HEADS_MAX + 1):
        await post(api, b"body", **{"anthropic-beta": f"beta-{number}"})
    assert [request.headers["anthropic-beta"] for request in sent] == [f"beta-{n}" for n in range(HEADS_MAX + 1)]
    assert len(api.client.heads) == 1  # type: ignore[attr-defined]
