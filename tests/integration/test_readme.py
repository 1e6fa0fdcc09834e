"""README.md is run, block by block, as a newcomer would."""

import asyncio
import re
import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.event_stream import parse, turns_own
from tests.up import CHECKOUT, running

IN_README = "http://127.0.0.1:8000"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIRST, REST = "first.txt", "rest.txt"


@pytest.mark.skipif(shutil.which("curl") is None, reason="NO CURL: the README's session is not tested on this machine")
async def test_the_session_of_the_readme_gives_the_whole_answer_in_two_pieces(tmp_path: Path) -> None:
    """Cut off and come back with the last id: both pieces together are what the log holds, every frame once."""
    blocks = BLOCK.findall((CHECKOUT / "README.md").read_text())
    assert len(blocks) == 3
    with running(tmp_path, "--port", "0") as up:
        url = await up.ready()
        script = "\n".join(blocks).replace(IN_README, url).rstrip() + f" > {REST}\necho turn $TURN\n"
        command = ["bash", "-c", script]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=40, check=True
        )
        turn = re.findall(r"^turn (\S+)$", done.stdout, re.MULTILINE)[0]
        first, rest = (tmp_path / FIRST).read_bytes(), (tmp_path / REST).read_bytes()
        async with httpx2.AsyncClient(base_url=url) as client:
            whole = (await client.get(f"/v1/turns/{turn}/events")).content
    # What curl was cut off in the middle of an event is not an event, and comes again.
    complete = first[: first.rfind(b"\n\n") + 2]
    assert 0 < len(complete) < len(whole)
    assert parse(turns_own(complete)) + parse(turns_own(rest)) == parse(turns_own(whole))
