"""The Python examples in the docs, and the commands of two pages, run as printed, except for addresses, keys, ids."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.system import System
from tests.integration.conftest import KEY, Gateway, NewGateway

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^ {4}(curl .*)$", re.MULTILINE)
BASE, QUESTION = "http://localhost:8000", "Name a river."
# Printed after each example.
END = "\0"
PRINTED_S_MAX = 90


def blocks() -> Iterator[tuple[str, str]]:
    """Yields the examples of all pages, and the programs to which docs/OPENAI.md and docs/API.md refer."""
    for page in sorted(DOCS.glob("*.md")):
        yield from ((page.name, block) for block in BLOCK.findall(page.read_text()))
    yield from ((name, (DOCS.parent / "examples" / name).read_text()) for name in PROGRAMS)


PROGRAMS = (
    "openai_resume.py",
    "openai_responses.py",
    "openai_websocket.py",
    "anthropic_repeat.py",
    "langchain_transport.py",
)
BLOCKS = list(blocks())
[RESPONSES, SOCKET, ANTHROPIC] = [dict(BLOCKS)[name] for name in PROGRAMS[1:4]]
# Runs every (page, example) of its input in one process, because the import of an SDK takes a second.
RUN = f"""
import json, sys
for page, code in json.load(sys.stdin):
    exec(compile(code, page, "exec"), {{"__name__": "__main__"}})
    print(flush=True, end={END!r})
"""


async def run_examples(examples: Iterable[tuple[str, str]]) -> list[str]:
    """Returns what each example prints. A traceback names its page."""
    examples = [(page, code.replace("my-secret-key", KEY)) for page, code in examples]
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", RUN],
        input=json.dumps(examples),
        capture_output=True,
        text=True,
        timeout=PRINTED_S_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [output.removesuffix("\n") for output in done.stdout.split(END)[:-1]]


async def text_of(gateway: Gateway) -> str:
    """Returns the simulated Claude's answer, which is the same for each request."""
    answer = await gateway.client.post("/chat", json={"message": QUESTION})
    return answer.text


@pytest.mark.timeout(150)
async def test_each_python_example_prints_the_whole_answer(gateway: Gateway) -> None:
    """Examples that resume print each word once.

    That of Anthropic's SDK survives cuts: it creates one turn and repeats the POST until the answer is complete.
    """
    assert [page for page, block in BLOCKS if QUESTION not in block] == []
    answer = await text_of(gateway)
    async with Cutting(gateway.port, [Cut(1500), Cut(2500, "fin")]) as proxy:
        outputs = await run_examples(
            (page, code.replace(BASE, proxy.url if code == ANTHROPIC else gateway.url)) for page, code in BLOCKS
        )
    assert [(page, output) for (page, _), output in zip(BLOCKS, outputs, strict=True) if output != answer] == []
    assert proxy.left == []
    sessions = (await gateway.client.get("/v1/sessions?limit=100")).json()["data"]
    assert len(sessions) == 1 + len(BLOCKS)


async def test_the_example_of_a_response_prints_only_the_answer_after_a_restart(gateway: Gateway) -> None:
    code = RESPONSES.replace(BASE, gateway.url).replace(QUESTION, "#sim words=9 rate=0 fault=cut@5x1")
    code = code.replace("stream=True)", "stream=True, extra_body={'on_interrupt': 'restart'})")
    assert await run_examples([("example", code)]) == [words(9)]


async def test_the_example_of_a_websocket_prints_each_word_once_over_cuts(gateway: Gateway) -> None:
    async with Cutting(gateway.port, [Cut(3_000), Cut(6_000, "fin")]) as proxy:
        code = SOCKET.replace(BASE, proxy.url).replace(QUESTION, "#sim words=40 rate=40")
        assert await run_examples([("example", code)]) == [words(40)]
    assert proxy.left == []


@pytest.mark.skipif(
    shutil.which("curl") is None, reason="NO CURL: the commands of API.md and STEERING.md are not tested here"
)
@pytest.mark.usefixtures("gateway")
async def test_each_command_of_the_api_page_is_accepted(
    system: System, new_gateway: NewGateway, tmp_path: Path
) -> None:
    shutil.copy(DOCS.parent / "README.md", tmp_path)
    gateway = await new_gateway(system.nats_url, api_keys="")
    names = {"localhost:8000": gateway.url}
    pages = [(DOCS / page).read_text() for page in ("API.md", "STEERING.md")]
    commands = [command for page in pages for command in COMMAND.findall(page)]
    assert len(commands) == 22
    for printed in commands:
        command = printed
        for name, value in names.items():
            command = command.replace(name, value)
        done = await asyncio.to_thread(
            subprocess.run,
            ["sh", "-c", f"{command} --fail-with-body"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=PRINTED_S_MAX,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout)
        if found := re.search('"turn":"(.*?)","session":"(.*?)"', done.stdout):
            names.setdefault("FIRST-TURN", found[1])
            names.setdefault("SESSION", found[2])
