"""`tailrace up` on a machine that lacks something that it needs: one sentence says what, before a process starts."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.harness.up import CHECKOUT, LEAN, START_S_MAX, running

# User, network and mounts of their own, also for another user than root.
ISOLATED = ("unshare", "--map-root-user", "--net", "--mount")


@cache
def can_isolate() -> bool:
    """Whether this user may make namespaces in which the loopback interface can be used."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    probe = [*ISOLATED, "ip", "link", "set", "lo", "up"]
    return subprocess.run(probe, capture_output=True, check=False, timeout=20).returncode == 0


needs_namespaces = pytest.mark.skipif(
    not can_isolate(), reason="NO NAMESPACES: networks without loopback or IPv4 names are not tested on this machine"
)


def run_python(
    *arguments: str, prefix: Sequence[str] = (), limits: Mapping[int, int] = MappingProxyType({})
) -> tuple[str, str]:
    """Runs Python in the checkout until it ends; returns its output and its errors. `limits` are soft."""

    def set_limits() -> None:
        for which, limit in limits.items():
            resource.setrlimit(which, (limit, resource.getrlimit(which)[1]))

    done = subprocess.run(
        [*prefix, sys.executable, *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S_MAX,
        preexec_fn=set_limits,
    )
    return done.stdout, done.stderr


def isolated_command(script: str, *arguments: object) -> list[str]:
    """Returns the beginning of a command that runs a script of sh in new namespaces, and then a program in them."""
    return [*ISOLATED, "sh", "-euc", f'{script}; shift {len(arguments)}; exec "$@"', "sh", *map(str, arguments)]


@needs_namespaces
@pytest.mark.parametrize(
    ("script", "host"), [(":", "127.0.0.1"), ("ip link set lo up; ip address del 127.0.0.1/8 dev lo", "::1")]
)
def test_up_is_refused_without_a_loopback_network(tmp_path: Path, script: str, host: str) -> None:
    """Servers can listen on 127.0.0.1 while the interface is down, but no client reaches them."""
    up = ("-m", "tailrace", "up", *LEAN, "--host", host, "--data", str(tmp_path / "data"))
    out, err = run_python(*up, prefix=isolated_command(script))
    assert not out
    assert err == (
        "tailrace: this machine cannot reach its own address 127.0.0.1 (Network is unreachable): bring its loopback"
        " interface up, on Linux with `ip link set lo up`\n"
    )


@needs_namespaces
@pytest.mark.parametrize(
    ("hosts", "address"), [("::1 localhost", "::1"), ("::1 localhost\n127.0.0.1 localhost", "127.0.0.1")]
)
def test_a_host_name_means_its_ipv4_address_or_else_its_ipv6_address(tmp_path: Path, hosts: str, address: str) -> None:
    """Clients that are given the name connect to the addresses that /etc/hosts has for it."""
    (tmp_path / "hosts").write_text(f"{hosts}\n")
    program = (
        "from tailrace.deploy.local.ports import listen\n"
        "with listen('localhost', 0) as listener: print(listener.getsockname()[0])"
    )
    prefix = isolated_command('ip link set lo up; mount --bind "$1" /etc/hosts', tmp_path / "hosts")
    assert run_python("-c", program, prefix=prefix) == (f"{address}\n", "")


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({resource.RLIMIT_NOFILE: 24}, "the limit of open files is 24: raise it with `ulimit -n` to 52 or more"),
        ({resource.RLIMIT_NPROC: 24}, "the limit of processes is 24: raise it with `ulimit -u` to 48 or more"),
    ],
)
def test_up_is_refused_with_a_limit_that_is_too_low_for_its_processes(
    tmp_path: Path, limits: Mapping[int, int], message: str
) -> None:
    """They would be restarted again and again. The number depends on the options."""
    up = ("-m", "tailrace", "up", *LEAN, "--data", str(tmp_path / "data"))
    assert run_python(*up, limits=limits) == ("", f"tailrace: {message}\n")


def test_a_crash_of_nats_server_is_no_invalid_setting(tmp_path: Path) -> None:
    """A Go program that gets no memory ends with the status that a Python process has for an invalid setting."""
    up = ("-m", "tailrace", "up", *LEAN, "--data", str(tmp_path / "data"))
    out, err = run_python(*up, limits={resource.RLIMIT_AS: 400 * 1024**2})
    assert "fatal error: " in out
    assert err == (
        "tailrace: nats-server crashed; the limit of memory (`ulimit -v`) or of processes (`ulimit -u`) may be too low:"
        " see its lines above\n"
    )


async def test_up_says_that_other_commands_do_not_find_it_without_a_home_directory(tmp_path: Path) -> None:
    """They would use the gateway on port 8000, which may be another system."""
    (tmp_path / "file").touch()
    with running(tmp_path, *LEAN, XDG_STATE_HOME=str(tmp_path / "file")) as up:
        await up.ready()
        [line] = [line for line in up.lines if "other commands do not find this system" in line]
    assert f"add --data {up.folder} to them" in line
