"""The process reaper: a program ends with its parent, together with all processes that it has started."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tailrace.features.claude_code import process_reaper
from tests.harness.until import until

# A grandchild that has left session and group and ignores SIGTERM: only its subreaper finds it.
HIDING = "setsid sh -c 'trap \"\" TERM; echo $$; sleep 300' & trap '' TERM; echo $$; sleep 300; sleep 300"
PARENT = """
import asyncio, os, sys
from pathlib import Path
from tailrace.features.claude_code import process_reaper
async def main():
    read, write = os.pipe()
    arguments = process_reaper.command(["sh", "-c", sys.argv[1]], read, Path(sys.argv[2]))
    process = await asyncio.create_subprocess_exec(*arguments, pass_fds=(read,))
    await process.wait()
asyncio.run(main())
"""

linux_only = pytest.mark.skipif(
    sys.platform != "linux", reason="subreapers and parent-death signals exist on Linux only"
)


def is_there(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def two_pids(output: asyncio.StreamReader) -> list[int]:
    return [int(await output.readline()) for _ in range(2)]


def folder_in(tmp_path: Path) -> Path:
    """Makes a directory with a file, as a call has one."""
    folder = tmp_path / "its-own"
    folder.mkdir()
    (folder / "system.txt").write_text("a system prompt")
    return folder


@linux_only
async def test_sigterm_ends_all_processes_and_removes_the_directory(tmp_path: Path) -> None:
    folder = folder_in(tmp_path)
    read, write = os.pipe()
    arguments = process_reaper.command(["sh", "-c", HIDING], read, folder)
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, pass_fds=(read,))
    for end in (read, write):
        os.close(end)
    assert process.stdout is not None
    pids = await two_pids(process.stdout)
    assert all(map(is_there, pids))
    process.send_signal(SIGTERM)
    # To the end of its output: uvloop cannot close a loop whose pipe has just been hung up.
    await process.communicate()
    assert [pid for pid in pids if is_there(pid)] == []
    assert not folder.exists()


@linux_only
async def test_a_killed_parent_leaves_no_process_and_no_directory(tmp_path: Path) -> None:
    """The kernel signals the reaper."""
    folder = folder_in(tmp_path)
    arguments = (sys.executable, "-c", PARENT, HIDING, str(folder))
    process = await asyncio.create_subprocess_exec(*arguments, stdout=PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None
    pids = await two_pids(process.stdout)
    assert all(map(is_there, pids))
    process.send_signal(SIGKILL)
    await process.communicate()
    await until(lambda: not any(map(is_there, pids)), 10)
    await until(lambda: not folder.exists(), 10)


async def test_a_program_that_ends_by_itself_keeps_its_exit_status(tmp_path: Path) -> None:
    """It can read the pipe that was passed to it."""
    read, write = os.pipe()
    os.write(write, b"a key")
    os.close(write)
    words = ["sh", "-c", f"cat /dev/fd/{read}; exit 7"]
    process = await asyncio.create_subprocess_exec(
        *process_reaper.command(words, read, tmp_path / "none"), stdout=PIPE, pass_fds=(read,)
    )
    os.close(read)
    stdout, _ = await process.communicate()
    assert (stdout, process.returncode) == (b"a key", 7)
