"""`tailrace up` on macOS, as far as Linux can imitate it: without the calls, options and files that only Linux has."""

import resource
import signal
from pathlib import Path

import pytest

from tailrace.gateway.http.fd_limit import TRIED
from tests.harness.forks import run_command
from tests.harness.up import LEAN, STOP_S_MAX, running

# Python runs sitecustomize.py in every process. The limit of open files is that of a new terminal on macOS: the hard
# one is unlimited, but no process may use it as its soft limit (setrlimit(2) of macOS).
MACOS = f"""
import asyncio, builtins, io, os, resource, signal, socket, subprocess, sys, tempfile, urllib.request
import aiohttp, anthropic, nats, uvicorn, uvloop

get_limit, set_limit = resource.getrlimit, resource.setrlimit
REAL_MAX = get_limit(resource.RLIMIT_NOFILE)[1]
resource.RLIM_INFINITY = 2**63 - 1
set_limit(resource.RLIMIT_NOFILE, (256, REAL_MAX))

def getrlimit(which):
    soft, hard = get_limit(which)
    return (soft, resource.RLIM_INFINITY) if which == resource.RLIMIT_NOFILE else (soft, hard)

def setrlimit(which, limits):
    if which == resource.RLIMIT_AS or (which == resource.RLIMIT_NOFILE and limits[0] > {TRIED[-1]}):
        raise ValueError("current limit exceeds maximum limit")
    set_limit(which, (min(limits[0], REAL_MAX), REAL_MAX) if which == resource.RLIMIT_NOFILE else limits)

def without_linux_files(call):
    def checked(name, *args, **kwargs):
        if isinstance(name, str | os.PathLike) and os.fspath(name).startswith(("/proc/", "/sys/")):
            raise FileNotFoundError(2, "No such file or directory", os.fspath(name))
        return call(name, *args, **kwargs)
    return checked

resource.getrlimit, resource.setrlimit = getrlimit, setrlimit
builtins.open = io.open = without_linux_files(builtins.open)
os.stat = without_linux_files(os.stat)
for module, names in (
    (os, "sched_getaffinity pipe2 posix_fadvise posix_fallocate eventfd memfd_create pidfd_open fdatasync getresuid"),
    (socket, "TCP_USER_TIMEOUT TCP_KEEPIDLE SOCK_CLOEXEC SOCK_NONBLOCK SO_PEERCRED TCP_QUICKACK"),
    (signal, "sigtimedwait sigwaitinfo"),
):
    for name in filter(module.__dict__.__contains__, names.split()):
        delattr(module, name)
sys.platform = "darwin"
"""


@pytest.mark.timeout(120)
async def test_up_answers_without_what_only_linux_has(tmp_path: Path) -> None:
    """The gateway raises the limit of open files as far as macOS permits."""
    (tmp_path / "sitecustomize.py").write_text(MACOS)
    with running(tmp_path, *LEAN, is_real=True, PYTHONPATH=str(tmp_path)) as up:
        try:
            url = await up.ready()
            answer = await run_command("ask", "--url", url, "Count to three.")
            assert "1, 2, 3" in answer.out
            limit = min(TRIED[-1], resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            warning = f"too few file descriptors: raise `ulimit -Hn` limit={limit} "
            assert [line for line in up.lines if warning in line]
        finally:
            # Without Linux's signal at the death of their parent, the processes would outlive a killed `up`.
            up.process.send_signal(signal.SIGINT)
            status = up.process.wait(STOP_S_MAX)
    assert status == 0
