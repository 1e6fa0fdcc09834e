"""The commands and the Python examples of README.md, run against `tailrace up`."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from tests.harness.sse_parser import parse, without_retry
from tests.harness.up import CHECKOUT, LEAN, running

README_URL = "http://127.0.0.1:8000"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST, REST = "first.txt", "rest.txt"


def blocks(language: str, url: str) -> list[str]:
    """Returns the code blocks of README.md in this language, with the URL of a gateway that runs."""
    found = BLOCK.findall((CHECKOUT / "README.md").read_text())
    return [code.replace(README_URL, url) for name, code in found if name == language]


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
        examples = blocks("python", url)
        assert len(examples) == 3
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
