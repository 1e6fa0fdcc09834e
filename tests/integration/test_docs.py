"""The Python examples in the docs run as printed, except for the address and the key."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.cutting_proxy import Cut, Cutting
from tests.integration.conftest import KEY, Gateway

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
QUESTION = "Name a river."


def blocks() -> Iterator[tuple[str, str]]:
    for page in sorted(DOCS.glob("*.md")):
        yield from ((page.name, block) for block in BLOCK.findall(page.read_text()))


BLOCKS = list(blocks())


async def printed(block: str, url: str) -> str:
    code = block.replace("http://localhost:8000", url).replace("my-secret-key", KEY)
    command = [sys.executable, "-c", code]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


async def text_of(gateway: Gateway) -> str:
    """Returns the simulated Claude's answer, which is the same for each request."""
    answer = await gateway.client.post("/chat", json={"message": QUESTION})
    return answer.text


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(BLOCKS)])
async def test_python_example_prints_the_whole_answer(gateway: Gateway, page: str, block: str) -> None:
    """Examples that resume print each word once."""
    assert QUESTION in block, page
    assert await printed(block, gateway.url) == await text_of(gateway)


async def test_example_of_anthropics_sdk_survives_cuts(gateway: Gateway) -> None:
    """It creates one turn and repeats the POST until the answer is complete."""
    (block,) = [block for page, block in BLOCKS if page == "API.md" and "import anthropic" in block]
    async with Cutting(gateway.port, [Cut(1500), Cut(2500, "fin")]) as proxy:
        assert await printed(block, proxy.url) == await text_of(gateway)
    assert proxy.left == []
    assert len((await gateway.client.get("/v1/sessions")).json()["data"]) == 2
