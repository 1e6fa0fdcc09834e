"""Tutorial pages when a generator is killed: they show the log's text."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.clients.conftest import Takeover, read_stored_text
from tests.harness.displayed_text import SAYS
from tests.harness.generator_in_loop import words
from tests.integration.conftest import KEY

TEXT = words(150)
LINE = "#sim words=150 rate=150"
PAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "delta": ("/chat/stream", {"message": LINE}),
    "text": ("/chat", {"message": LINE}),
    "content": ("/ai/chat", {"messages": [{"role": "user", "content": LINE}]}),
}


@pytest.fixture
async def page() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {KEY}"}, trust_env=False, timeout=30) as client:
        yield client


@pytest.mark.proves("delta", "generator killed during the answer", "a tutorial's fetch loop")
@pytest.mark.proves("text", "generator killed during the answer", "a tutorial's chat page")
@pytest.mark.proves("content", "generator killed during the answer", "a tutorial's fetch loop")
@pytest.mark.proves("job", "generator killed during the answer", "a tutorial's fetch loop")
async def test_killed_generator_is_hidden(takeover: Takeover, page: httpx.AsyncClient) -> None:
    """None of the pages can resume: the open stream continues. A job is read to its end."""
    url = takeover.gateway.url

    async def read_page(dialect: str) -> tuple[str, str]:
        path, body = PAGES[dialect]
        answer = await page.post(f"{url}{path}", json=body)
        return answer.headers["tailrace-turn"], SAYS[dialect](answer.content)

    async def job() -> tuple[str, str]:
        started = (await page.post(f"{url}/api/start-job", json={"prompt": LINE})).json()["job_id"]
        return started, SAYS["job"]((await page.get(f"{url}/api/stream/{started}")).content)

    pages = [asyncio.create_task(read_page(dialect)) for dialect in PAGES]
    pages.append(asyncio.create_task(job()))
    async with takeover.run_and_kill_after(10):
        seen = await asyncio.gather(*pages)
    assert [text for _, text in seen] == [TEXT] * 4
    assert [await read_stored_text(takeover.gateway, turn) for turn, _ in seen] == [TEXT] * 4
