"""Which processes make a Tailrace, and which settings each gets; pure, and starts none of them.

Settings go by the environment: an argument can be read by every user of the machine, and some are secret.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tailrace.deploy.local.options import Options
from tailrace.deploy.local.readiness import HealthCheck
from tailrace.deploy.local.supervisor import ProcessSpec

# The folder that holds the package `tailrace`: the checkout, or site-packages.
IMPORT_PATH = str(Path(__file__).parents[3])
# The SDK wants a key; the simulated Claude takes any.
SIMULATED_KEY = "simulated"
# Only who sends webhooks has it; gateways are told that there is one.
WEBHOOK_KEY = "TAILRACE_WEBHOOK_KEY"
# What each process counts says so, too (proto/runtime/main.py).
READY = "\ntailrace_ready 1.0"


class Plan(msgspec.Struct, frozen=True):
    """What was found out before the first process: free ports, passwords, the socket that the gateways share."""

    nats_urls: Mapping[str, str]  # by user: no process is told another one's
    host: str  # where people reach the gateway; not 0.0.0.0, which is nowhere
    port: int
    listen_fd: int
    claude_port: int
    metrics_ports: tuple[int, ...]  # one for each of `services`

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


class Service(msgspec.Struct, frozen=True):
    """`python -m tailrace.MODULE` under a name of its own, with what it alone has to know."""

    name: str
    module: str
    settings: Mapping[str, str]
    where: str = ""


# What other backends than claude read, keys among it: also where Claude is simulated, they may be real.
BACKENDS_OWN = ("ANTHROPIC_BEDROCK_", "ANTHROPIC_VERTEX_", "AWS_", "GOOGLE_", "CLOUD_ML_")
GENERATORS_OWN = ("ANTHROPIC_", *BACKENDS_OWN)


def is_simulated(environ: Mapping[str, str]) -> bool:
    """Whether somebody has to stand for Anthropic's API: a backend asks it, and there is no key."""
    asks = re.search(r"\bclaude(_code)?\s*(,|;|:|$)", environ.get("TAILRACE_BACKENDS", "claude"))
    return asks is not None and not environ.get("ANTHROPIC_API_KEY")


def parts(options: Options, ground: Plan, environ: Mapping[str, str]) -> list[ProcessSpec]:
    """All but nats-server, in the order of their start.

    They inherit `environ`, so any setting can be given to `up`; what is the backends' goes to the generators only.
    """
    own = {name: value for name, value in environ.items() if name.startswith(GENERATORS_OWN)}
    inherited = {
        "TAILRACE_LOG_FORMAT": "console",
        "TAILRACE_CLAUDE_CODE_ROOT": str(options.folder / "projects"),
        **{name: value for name, value in environ.items() if name not in own and name != WEBHOOK_KEY},
        "PYTHONPATH": os.pathsep.join(filter(None, [IMPORT_PATH, environ.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",  # a line is seen when it is said
        "PYTHONSAFEPATH": "1",  # no module is looked for where `up` happens to be called
    }
    if is_simulated(environ):
        own = {name: value for name, value in own.items() if name.startswith(BACKENDS_OWN)} | simulated_settings(ground)
    persistence, *others = (
        ProcessSpec(
            name=service.name,
            role=service.module,
            command=(sys.executable, "-m", f"tailrace.{service.module}"),
            environ={
                **inherited,
                **service.settings,
                "TAILRACE_NATS_URL": ground.nats_urls[service.module],
                "TAILRACE_METRICS_PORT": str(port),
            },
            where=(service.where, f"metrics http://127.0.0.1:{port}/metrics"),
            fds=(ground.listen_fd,) if service.module == "gateway" else (),
            readiness=HealthCheck(port, "/metrics", READY),
        )
        for service, port in zip(
            services(options, ground, own, environ.get(WEBHOOK_KEY, "")), ground.metrics_ports, strict=True
        )
    )
    simulated = [simulated_claude(ground, inherited)] if is_simulated(environ) else []
    return [persistence, *simulated, *others]


def services(options: Options, ground: Plan, own: Mapping[str, str], webhook_key: str) -> list[Service]:
    """`own` is what only the generators are told."""
    database = str(options.folder / "tailrace.db")
    persistence = {"TAILRACE_DATABASE": database, WEBHOOK_KEY: webhook_key}
    gateway = {
        "TAILRACE_WEBHOOKS": "true" if webhook_key else "false",
        "TAILRACE_LISTEN_FD": str(ground.listen_fd),
        "TAILRACE_HOST": options.host,
        "TAILRACE_PORT": str(ground.port),
    }
    generators = [f"generator-{number}" for number in range(1, options.generators + 1)]
    gateways = [f"gateway-{number}" for number in range(1, options.gateways + 1)]
    return [
        Service("persistence", "persistence", persistence, database),
        *(Service(name, "generators", {**own, "TAILRACE_GENERATOR": name}) for name in generators),
        *(Service(name, "gateway", gateway, ground.url) for name in gateways),
    ]


def simulated_settings(ground: Plan) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{ground.claude_port}",
        "ANTHROPIC_API_KEY": SIMULATED_KEY,
        "NO_PROXY": "127.0.0.1",  # a proxy of the machine's owner does not lead back here
    }


def simulated_claude(ground: Plan, environ: Mapping[str, str]) -> ProcessSpec:
    module = "tailrace.deploy.simulated_claude"
    return ProcessSpec(
        name="simulated-claude",
        role=module,
        command=(sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(ground.claude_port)),
        environ={name: value for name, value in environ.items() if name != "TAILRACE_NATS_URL"},
        where=(f"http://127.0.0.1:{ground.claude_port}",),
        readiness=HealthCheck(ground.claude_port, "/_sim/stats"),
    )
