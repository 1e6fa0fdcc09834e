"""The homes of docs/SYSTEMD.md: one machine with `tailrace up`, and the separate units on one machine."""

import re
import shutil
import time
from functools import partial
from pathlib import Path

from tests.harness.disk import fill
from tests.harness.processes import CHECKOUT
from tests.shipped.journey import Journey, Say, Step
from tests.shipped.machine import Machine
from tests.shipped.pages import Page
from tests.shipped.wheels import Wheels

UNITS = CHECKOUT / "deploy/systemd"
BIN = "/opt/tailrace/bin"
# The processes of `up`, each by a part of its command line.
PROCESSES = ("nats-server", "tailrace.persistence", "tailrace.generators", "tailrace.gateway", "simulated_claude")
GENERATORS = "tailrace-generators@1 tailrace-generators@2"
# On a busy machine, a process takes ten seconds to start, and ends its turns before.
SIGN_S_MAX = 60
WATCHDOG_S_MAX = 45
# It stops after the generators, as the real one is there until the network goes down.
SIMULATED_CLAUDE = f"""[Unit]
Before=tailrace-generators@1.service tailrace-generators@2.service tailrace-generators@3.service
[Service]
User=tailrace
ExecStart={BIN}/python -m tailrace.deploy.simulated_claude --host 127.0.0.1 --port 9099
[Install]
WantedBy=multi-user.target
"""


class Installed:
    """A machine on which the first block of the page is run, with the wheel of the commit before."""

    def __init__(self, machine: Machine, wheels: Wheels, units: str) -> None:
        self.machine, self._wheels = machine, wheels
        self.page = Page("SYSTEMD.md")
        self._copy_wheel(wheels.before)
        (install,) = self.page.blocks[""]
        machine.sh(install)
        for unit in UNITS.glob(units):
            shutil.copy(unit, machine.root / "etc/systemd/system")

    def _copy_wheel(self, wheel: Path) -> None:
        for old in (self.machine.root / "root").glob("*.whl"):
            old.unlink()
        shutil.copy(wheel, self.machine.root / "root")

    def upgrade(self, *commands: str) -> None:
        """Installs the checkout's wheel, and runs the page's commands of an upgrade."""
        self._copy_wheel(self._wheels.now)
        self.machine.sh("\n".join([f"{BIN}/pip install ./tailrace-*.whl", *commands]))


def run_one_machine(machine: Machine, wheels: Wheels, say: Say) -> list[Step]:
    """The steps of "One machine"."""
    installed, data = Installed(machine, wheels, "tailrace.service"), machine.root / "var/lib/tailrace"
    write_env, start, create_key = installed.page.blocks["One machine"]
    sh = machine.sh
    sh(f"{write_env}\n{start}")
    journey = Journey(
        "systemd with tailrace up", "http://127.0.0.1:8000", lambda: (data / "nats.url").read_text().strip(), say
    )
    step = journey.step
    journey.use_key(sh(create_key), "acme")
    step("answer with an API key")
    step("upgrade", partial(installed.upgrade, "systemctl reload tailrace"))
    for process in PROCESSES:
        kill = f"pkill -KILL --cgroup /system.slice/tailrace.service --full {process}"
        step(f"kill -9 of {process}", partial(sh, kill))
    step("kill -9 of up", partial(sh, "systemctl kill --signal KILL --kill-whom main tailrace"))
    step("tailrace hangs", partial(hang, machine, "tailrace"), count=800)
    step("restart", partial(sh, "systemctl restart tailrace"))
    step("reload", partial(sh, "systemctl reload tailrace"))
    for count in (3, 1):
        command = f"sudo -u tailrace {BIN}/tailrace restart --generators {count} --data /var/lib/tailrace"
        step(f"scale generators to {count}", partial(sh, command))
    step("reboot", machine.reboot)
    step("full disk for 60 s", partial(fill_disk, data, 60), count=400)
    step("answer after it")
    step("rights and warnings", partial(check_rights, machine, installed.page, {"tailrace": 1}))
    return journey.steps


def run_separate_units(machine: Machine, wheels: Wheels, say: Say) -> list[Step]:
    """The steps of "Three machines", on one machine with one nats-server."""
    installed, nats_page = Installed(machine, wheels, "tailrace-*"), Page("NATS.md")
    start_nats, create, start_persistence, start_others, upgrade = installed.page.blocks["Three machines"]
    sh = machine.sh
    sh(f". {BIN}/activate\n{nats_page.blocks[''][1]}")
    # Step 2 of the page, whose table says where each file belongs.
    sh("""
        install --owner tailrace --mode 600 nats/nats-1.conf /etc/tailrace/nats.conf
        install --mode 600 nats/gateway.env nats/generators.env nats/persistence.env /etc/tailrace
        umask 077
        printf 'ANTHROPIC_API_KEY=simulated\\nANTHROPIC_BASE_URL=http://127.0.0.1:9099\\n' > /etc/tailrace/model.env
    """)
    (machine.root / "etc/systemd/system/simulated-claude.service").write_text(SIMULATED_CLAUDE)
    sh(start_nats)
    key = sh(create)
    for block in ("systemctl enable --now simulated-claude", start_persistence, start_others):
        sh(block)
    admin = sh("cat nats/admin.env").partition("TAILRACE_NATS_URL=")[2].split()[0]
    journey = Journey("systemd with separate units", "http://127.0.0.1:8001", lambda: admin, say)
    journey.use_key(key, "acme")
    step = journey.step
    restarts = (f"systemctl restart {GENERATORS}", "systemctl restart tailrace-gateway@1")
    step("answer")
    step("upgrade", partial(installed.upgrade, upgrade, *restarts), count=400)
    step("second gateway on the port", partial(sh, "systemctl enable --now tailrace-gateway@2"))
    for unit in ("tailrace-nats", "tailrace-persistence", "tailrace-gateway@1", "tailrace-gateway@2", GENERATORS):
        step(f"kill -9 of {unit}", partial(sh, f"systemctl kill --signal KILL {unit}"))
    for unit in ("tailrace-nats", "tailrace-persistence", "tailrace-gateway@1", GENERATORS):
        step(f"restart of {unit}", partial(sh, f"systemctl restart {unit}"))
    stop = "systemctl stop tailrace-gateway@1; sleep 5; systemctl start tailrace-gateway@1"
    step("stop of tailrace-gateway@1 for 5 s", partial(sh, stop))
    for unit in ("tailrace-gateway@2", "tailrace-generators@1", "tailrace-persistence"):
        step(f"{unit} hangs", partial(hang, machine, unit), count=800)
    for what, in_unit, sign in BAD_INPUT:
        step(what, partial(misconfigure, machine, in_unit, sign))
    step("read-only disk of the database", partial(make_read_only, machine))
    step("limit of memory", partial(limit_memory, machine, "tailrace-generators@2"))
    step("scale generators to 3", partial(sh, "systemctl enable --now tailrace-generators@3"))
    step("scale generators to 1", partial(sh, "systemctl disable --now tailrace-generators@2 tailrace-generators@3"))
    step("reboot", machine.reboot)
    step("full disk of the log for 20 s", partial(fill_log, machine), count=400)
    step("full disk of the database for 20 s", partial(fill_disk, machine.root / "var/lib/tailrace", 20), count=400)
    step("answer after it")
    rights = {"tailrace-nats": 0, "tailrace-persistence": 0, "tailrace-gateway@1": 0, "tailrace-generators@1": 1}
    step("rights and warnings", partial(check_rights, machine, installed.page, rights))
    return journey.steps


ELSEWHERE = f"/usr/bin/env TAILRACE_NATS_URL=nats://generators:x@127.0.0.1:1 {BIN}/python -m tailrace.generators"
# Each mistake: its name, the lines of a drop-in that make it, and the sign in the table of docs/RUNBOOK.md.
BAD_INPUT = (
    ("wrong path in a unit", "ExecStart=\nExecStart=/opt/other/bin/python", "status=203/EXEC"),
    ("missing file of the environment", "EnvironmentFile=/etc/tailrace/other.env", "Failed to load environment files"),
    ("invalid setting", "Environment=TAILRACE_CONCURRENCY=many", "status=2/INVALIDARGUMENT"),
    ("missing secret", "UnsetEnvironment=ANTHROPIC_API_KEY", "status=2/INVALIDARGUMENT"),
    # A file of the environment comes after Environment=.
    ("wrong address of NATS", f"ExecStart=\nExecStart={ELSEWHERE}", "waiting for nats-server"),
)


def misconfigure(machine: Machine, lines: str, sign: str) -> None:
    """Restarts a generator with a mistake; the sign must be in its status or journal. Then corrects it."""
    unit = "tailrace-generators@2"
    folder = machine.root / f"etc/systemd/system/{unit}.service.d"
    folder.mkdir()
    (folder / "mistake.conf").write_text(f"[Service]\n{lines}\n")
    since = machine.sh("date +'%F %T'")
    machine.sh(f"systemctl daemon-reload; systemctl restart --no-block {unit}")
    try:
        told = f"systemctl status {unit}; journalctl --unit {unit} --since '{since}'"
        wait_for(machine, f"({told}) | grep --fixed-strings '{sign}'", SIGN_S_MAX)
    finally:
        shutil.rmtree(folder)
        machine.sh(f"systemctl daemon-reload; systemctl restart {unit}")


def hang(machine: Machine, unit: str) -> None:
    """Stops a process with SIGSTOP; systemd's watchdog must start it again."""
    before = machine.sh(f"systemctl show --property NRestarts --value {unit}")
    machine.sh(f"systemctl kill --signal STOP {unit}")
    wait_for(machine, f"test $(systemctl show --property NRestarts --value {unit}) -gt {before}", WATCHDOG_S_MAX)
    machine.sh(f"journalctl --unit {unit} --grep watchdog")


def limit_memory(machine: Machine, unit: str) -> None:
    """Gives a process less memory than it uses; the kernel kills it, and systemd must start it again."""
    before = machine.sh(f"systemctl show --property NRestarts --value {unit}")
    # With cgroups of version 1, memory is counted from now on: another program of the group needs more than there is,
    # and the kernel kills the larger one.
    machine.sh(f"""
        if grep --quiet memory /sys/fs/cgroup/cgroup.controllers; then
          systemctl set-property --runtime {unit} MemoryMax=1M
          exit
        fi
        mount -t cgroup -o memory cgroup /mnt
        group=$(mktemp --directory /mnt/shipped-XXXXXX)
        trap "sleep 1; rmdir $group; umount /mnt" EXIT
        echo 8M > $group/memory.limit_in_bytes
        systemctl show --property MainPID --value {unit} > $group/cgroup.procs
        sh -c "echo \\$\\$ > $group/cgroup.procs; head -c 99M /dev/zero | tail" > /dev/null || true
    """)
    wait_for(machine, f"test $(systemctl show --property NRestarts --value {unit}) -gt {before}", SIGN_S_MAX)
    machine.sh(f"systemctl revert {unit}")


def make_read_only(machine: Machine) -> None:
    """Makes the disk of the database read-only; the status of persistence must say it."""
    disk = "/var/lib/tailrace"
    machine.sh(f"""
        systemctl stop tailrace-persistence
        mount --options remount,ro {disk}
        systemctl start --no-block tailrace-persistence
    """)
    try:
        wait_for(
            machine,
            "systemctl status tailrace-persistence | grep --fixed-strings 'waiting for the database'",
            SIGN_S_MAX,
        )
    finally:
        machine.sh(f"mount --options remount,rw {disk}; systemctl restart tailrace-persistence")


def fill_disk(folder: Path, seconds: float) -> None:
    """Leaves no space on the disk of a folder for a while."""
    fill(folder)
    time.sleep(seconds)
    (folder / "junk").unlink()


def fill_log(machine: Machine) -> None:
    """Fills the disk of nats-server, and does what docs/RUNBOOK.md says: make space, restart the server."""
    fill_disk(machine.root / "var/lib/nats", 20)
    machine.sh("systemctl restart tailrace-nats")


def check_rights(machine: Machine, page: Page, units: dict[str, int]) -> None:
    """Compares `systemd-analyze security` with the page: 0 is its first number, 1 its second."""
    promised = re.findall(r"`systemd-analyze security` gives ([\d.]+) .*?, and ([\d.]+) where", page.text, re.DOTALL)[0]
    for unit, number in units.items():
        score = machine.sh(f"systemd-analyze security --no-pager {unit} | tail -1").split(": ")[1].split()[0]
        assert score == promised[number], f"{unit}: {score}"
    machine.sh("systemd-analyze verify --man=no /etc/systemd/system/tailrace*.service")
    warnings = machine.sh("journalctl --priority warning --unit 'tailrace*' --output cat")
    assert "nats" in warnings, warnings


def wait_for(machine: Machine, script: str, seconds: float) -> None:
    """Repeats a script until it succeeds."""
    deadline = time.monotonic() + seconds
    while (done := machine.try_sh(script)).returncode:
        assert time.monotonic() < deadline, f"not within {seconds} s: {script}\n{done.stdout}"
        time.sleep(0.5)
