"""The home of docs/CONTAINERS.md: the image by the real Dockerfile, and all of compose.yaml with stand-ins."""

import re
import shutil
from functools import partial
from pathlib import Path

import msgspec

from tests.harness.processes import CHECKOUT
from tests.shipped.cache import ROOTS, WHEELS, WHEELS_URL
from tests.shipped.journey import Journey, Say, Step
from tests.shipped.machine import Machine
from tests.shipped.pages import Page
from tests.shipped.systemd import fill_disk
from tests.shipped.wheels import Wheels

HERE = "deploy/container"
COMPOSE = f"docker compose -f {HERE}/compose.yaml"
# The checkout on the machine, as far as Compose reads it.
WORK = "/srv/tailrace"
STAND_INS = Path(__file__).with_name("stand_ins")
COPIED = ("deploy", "docs", "locks")
OURS = ("nats", "persistence", "generators", "gateway-1", "gateway-2", "nginx", "simulated-claude")


class Compose:
    """Docker on a machine, with the stand-ins under the tags that compose.yaml names."""

    def __init__(self, machine: Machine, wheels: Wheels) -> None:
        self.machine, self._folder = machine, machine.root / WORK[1:]
        for name in COPIED:
            shutil.copytree(CHECKOUT / name, self._folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        self.use_wheel(wheels.before)
        dockerfile = self._folder / HERE / "Dockerfile"
        base = re.search(r"^FROM ([^@\s]+)(@\S+)", dockerfile.read_text(), re.MULTILINE)
        assert base is not None
        # The stand-in of the base image has another digest.
        dockerfile.write_text(dockerfile.read_text().replace(base[2], ""))
        machine.sh(f"""
            systemctl enable --now containerd docker
            systemd-run --quiet python3 -m http.server --directory {WHEELS} {WHEELS_URL.rpartition(":")[2]}
            docker import {ROOTS}/base-*.tar {base[1]}
            docker import {ROOTS}/services-*.tar services:shipped
        """)
        shutil.copytree(STAND_INS, machine.root / "srv/stand-ins")
        services = msgspec.yaml.decode((CHECKOUT / HERE / "compose.yaml").read_bytes())["services"]
        for name in re.findall(r"AS (\S+)$", (STAND_INS / "Dockerfile").read_text(), re.MULTILINE):
            machine.sh(f"docker build --quiet --target {name} --tag {services[name]['image']} /srv/stand-ins")

    def use_wheel(self, wheel: Path) -> None:
        """Replaces the wheel in dist/, as `make wheel` does in a checkout."""
        shutil.rmtree(self._folder / "dist", ignore_errors=True)
        (self._folder / "dist").mkdir()
        shutil.copy(wheel, self._folder / "dist")

    def sh(self, script: str) -> str:
        return self.machine.sh(script, WORK)

    def nats_url(self) -> str:
        """Returns the administrator's URL of NATS, which has no port on the machine."""
        secrets = (self._folder / HERE / ".env").read_text()
        (password,) = re.findall(r"^TAILRACE_ADMIN_PASSWORD=(.*)$", secrets, re.MULTILINE)
        address = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
        return f"nats://admin:{password}@{self.sh(f'docker inspect --format {address!r} tailrace-nats-1')}:4222"

    def kill(self, service: str) -> None:
        """Kills the process of each container of a service, with SIGKILL. `docker kill` would prevent the restart."""
        self.sh(f"""
            for container in $({COMPOSE} ps --quiet {service}); do
              pid=$(docker inspect --format '{{{{.State.Pid}}}}' $container)
              kill -KILL $(pgrep --parent $pid || echo $pid)
            done
        """)

    def scale(self, page: Page, count: int) -> None:
        """Runs the command of the page's table, after which every other container must be the same."""
        (command,) = re.findall(r"run more generators \| `docker compose … (.*?)`", page.text)
        others = f"{COMPOSE} ps --quiet persistence gateway-1 gateway-2 nginx"
        before = self.sh(others)
        self.sh(f"{COMPOSE} {command.replace('=6', f'={count}')}")
        assert self.sh(others) == before


def run_compose(machine: Machine, wheels: Wheels, say: Say) -> list[Step]:
    home, page = Compose(machine, wheels), Page("CONTAINERS.md")
    passwords, create_streams, start = page.blocks["Start it"]
    (create_key,) = page.blocks["Allow access from other machines"]
    upgrade = "\n".join(page.blocks["Upgrade without a repeated model call"])
    refused = machine.try_sh(f"{COMPOSE} config --quiet", WORK).stdout
    assert "_PASSWORD is missing" in refused, refused
    home.sh(f"{passwords}\n{create_streams}\n{start}")
    journey = Journey("Docker Compose", "http://127.0.0.1:8000", home.nats_url, say)
    step, sh = journey.step, home.sh
    step("answer")

    def upgrade_as_the_page_says() -> None:
        home.use_wheel(wheels.now)
        sh(upgrade)
        assert sh("docker volume ls --quiet --filter dangling=true") == ""

    step("upgrade", upgrade_as_the_page_says, count=900)
    journey.use_key(sh(create_key), "acme")
    step("answer with an API key")
    for service in OURS:
        step(f"kill -9 of {service}", partial(home.kill, service))
    for service in ("nats", "persistence", "gateway-1", "generators"):
        step(f"restart of {service}", partial(sh, f"{COMPOSE} restart {service}"))
    for count in (1, 3):
        step(f"scale generators to {count}", partial(home.scale, page, count))
    step("down, and up", partial(sh, f"{COMPOSE} down --timeout 30 && {COMPOSE} up --detach"))
    step("restart of Docker", partial(sh, "systemctl restart docker"))
    step("reboot", machine.reboot)
    step("full disk for 15 s", partial(fill_volumes, home), count=400)
    step("answer after it")
    return journey.steps


def fill_volumes(home: Compose) -> None:
    """Leaves no space for the volumes for a while, then does what docs/RUNBOOK.md says: restart nats-server."""
    volumes = home.machine.root / "var/lib/docker/volumes"
    fill_disk(volumes, 15)
    home.sh(f"{COMPOSE} restart nats")
