"""The commands and the Python examples of README.md, run against `tailrace up`; its two endpoints in an app."""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from tests.harness.cutting_proxy import Cut, Cutting
from tests.harness.generator_in_loop import words
from tests.harness.sse_parser import parse, without_retry
from tests.harness.system import System
from tests.harness.up import CHECKOUT, LEAN, running
from tests.integration.conftest import KEY, Gateway

README_URL = "http://127.0.0.1:8000"
QUESTION = [{"role": "user", "content": "#sim words=40 rate=100"}]
FIRST_SCREEN_LINES = 25
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST, REST = "first.txt", "rest.txt"


def blocks(language: str, url: str) -> list[str]:
    """Returns the code blocks of README.md in this language, with the URL of a gateway that runs."""
    found = BLOCK.findall((CHECKOUT / "README.md").read_text())
    return [code.replace(README_URL, url) for name, code in found if name == language]


def endpoints(url: str) -> list[str]:
    """Returns the two blocks of the endpoint: as it is today, and with Tailrace."""
    return [code for code in blocks("python", url) if "async def chat" in code]


async def post_question(code: str) -> httpx2.Response:
    """Returns the response of an endpoint in an app."""
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    app = Starlette(routes=[Route("/chat", names["chat"], methods=["POST"])])
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://app") as page:
        return await page.post("/chat", json=QUESTION)


@pytest.mark.skipif(shutil.which("curl") is None, reason="NO CURL: the README's session is not tested on this machine")
@pytest.mark.timeout(240)
async def test_shell_session_resumes_the_answer_without_gap_or_repeat(tmp_path: Path) -> None:
    """The two parts that curl received are together the whole stream of the turn, each event once."""
    with running(tmp_path, *LEAN) as up:
        url = await up.ready()
        commands = blocks("sh", url)
        assert len(commands) == 3
        script = "\n".join(commands).rstrip() + f" > {REST}\necho turn $TURN\n"
        command = ["bash", "-c", script]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=40, check=True
        )
        turn = re.findall(r"^turn (\S+)$", done.stdout, re.MULTILINE)[0]
        first, rest = (tmp_path / FIRST).read_bytes(), (tmp_path / REST).read_bytes()
        async with httpx2.AsyncClient(base_url=url) as client:
            whole = (await client.get(f"/v1/turns/{turn}/events")).content
        examples = [code for code in blocks("python", url) if code not in endpoints(url)]
        assert len(examples) == 2
        # As a user does it: a file in another folder, run with the Python into which `make setup` has installed.
        environ = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        for code in examples:
            (tmp_path / "example.py").write_text(code)
            command = [sys.executable, "example.py"]
            printed = await asyncio.to_thread(
                subprocess.run,
                command,
                cwd=tmp_path,
                env=environ,
                capture_output=True,
                text=True,
                timeout=40,
                check=True,
            )
            assert len(printed.stdout.split()) > 20
    # An event that curl received only in part does not count: the next response sends it again.
    complete = first[: first.rfind(b"\n\n") + 2]
    assert 0 < len(complete) < len(whole)
    assert parse(without_retry(complete)) + parse(without_retry(rest)) == parse(without_retry(whole))


async def test_both_endpoints_return_the_answer_and_only_that_with_tailrace_survives_a_cut(
    system: System, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page reads with an EventSource, which sends the last id after a cut. Both fit on the first screen."""
    today, with_tailrace = endpoints(gateway.url)
    assert len((today + with_tailrace).splitlines()) <= FIRST_SCREEN_LINES
    monkeypatch.setenv("ANTHROPIC_API_KEY", "any")
    monkeypatch.setenv("TAILRACE_KEY", KEY)
    cut = Cut(1500)
    async with (
        Cutting(int(system.claude.url.rpartition(":")[2]), [cut]) as model,
        Cutting(gateway.port, [cut]) as reader,
    ):
        monkeypatch.setenv("ANTHROPIC_BASE_URL", model.url)
        with pytest.raises((anthropic.APIConnectionError, httpx2.TransportError)):
            await post_question(today)
        assert (await post_question(today)).text == words(40)
        events = (await post_question(with_tailrace)).json()["events"].removeprefix(gateway.url)
        received, last = b"", ""
        async with httpx2.AsyncClient(base_url=reader.url, trust_env=False) as page:
            while b'"type":"done"' not in received:
                try:
                    async with page.stream("GET", events, headers={"Last-Event-ID": last} if last else {}) as stream:
                        assert stream.status_code == httpx2.codes.OK
                        part = b""
                        async for chunk in stream.aiter_bytes():
                            part += chunk
                except httpx2.TransportError:
                    part = part[: part.rfind(b"\n\n") + 2]
                received += without_retry(part)
                last = re.findall(rb"^id: (.+)$", part, re.MULTILINE)[-1].decode()
        assert model.left == reader.left == []
    told = [json.loads(data) for data in re.findall(rb"^data: (.+)$", received, re.MULTILINE)]
    assert "".join(event["text"] for event in told if event["type"] == "delta") == words(40)
