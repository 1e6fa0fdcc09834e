"""The processes of a local Tailrace and the settings of each. Pure; `up` starts them.

Settings are passed by the environment, because arguments are visible to all users of the machine and some are secret.
"""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tailrace.deploy.local.check_environment import FIRST_KEY_FILE, SERVICES
from tailrace.deploy.local.data_dir import FIRST_KEY, METRICS_TARGETS
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.ports import in_url
from tailrace.deploy.local.readiness import METRICS_PATH, HealthCheck
from tailrace.deploy.local.supervisor import GRACE_S, ProcessSpec
from tailrace.generators.settings import GRACE_S_MAX, Settings
from tailrace.proto.runtime.settings import PREFIX, REMOVED, env_name

# The directory that contains the package `tailrace`: the checkout, or site-packages.
IMPORT_PATH = str(Path(__file__).parents[3])
# The SDK requires a key; the simulated Claude accepts any.
SIMULATED_KEY = "simulated"
# A setting of persistence, which sends webhooks. WEBHOOKS tells gateways whether a key exists.
WEBHOOK_KEY = "TAILRACE_WEBHOOK_KEY"
WEBHOOKS = "TAILRACE_WEBHOOKS"
# How long a generator's turns may continue after SIGTERM.
GRACE = "TAILRACE_GRACE_S"
# A metric of each process (proto/service.py).
READY = "\ntailrace_ready 1.0"


class Plan(msgspec.Struct, frozen=True):
    """Ports, NATS URLs and the listening socket of the gateways, chosen before the processes start."""

    nats_urls: Mapping[str, str]  # by user: each process gets only its own
    host: str  # where clients reach the gateway; never a wildcard such as 0.0.0.0
    port: int
    listen_fd: int
    claude_port: int
    metrics_ports: tuple[int, ...]  # one for each of `services`
    metrics_host: str = "127.0.0.1"  # where this machine reaches the metrics
    demo_socket: str = ""  # empty on an address other than loopback

    @property
    def url(self) -> str:
        return f"http://{in_url(self.host)}:{self.port}"

    def metrics_check(self, port: int) -> HealthCheck:
        """Returns the check of the service whose metrics are on `port`."""
        return HealthCheck(port, METRICS_PATH, READY, self.metrics_host)


class Service(msgspec.Struct, frozen=True):
    """`python -m tailrace.MODULE` under its own name, with the settings that only this process gets."""

    name: str
    module: str
    settings: Mapping[str, str]
    where: str = ""


# This machine, in the form of NO_PROXY.
LOOPBACK = "localhost,127.0.0.1,::1"
# Variables of backends other than claude, including keys: these keys may be real while Claude is simulated.
OTHER_BACKENDS = ("ANTHROPIC_BEDROCK_", "ANTHROPIC_VERTEX_", "AWS_", "GOOGLE_", "CLOUD_ML_")
ALL_BACKENDS = ("ANTHROPIC_", "CLAUDE_CODE_", *OTHER_BACKENDS)
# Other names of secrets, such as those of LiteLLM's providers.
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
# A process warns of a removed setting.
SETTINGS = {role: frozenset([*map(env_name, kind.__struct_fields__), *REMOVED]) for role, kind in SERVICES}
EVERY_SETTING = frozenset[str]().union(*SETTINGS.values())


def is_simulated(environ: Mapping[str, str]) -> bool:
    """Returns whether the simulated Claude is needed: a backend calls Anthropic's API without a key."""
    # With a login, Claude Code alone needs no key.
    name = r"\bclaude" if environ.get("CLAUDE_CODE_OAUTH_TOKEN") else r"\bclaude(_code)?"
    calls_claude = re.search(rf"{name}\s*(,|;|:|$)", environ.get("TAILRACE_BACKENDS", "claude"))
    # Generators remove white space around a key: a blank line of a file of settings is no key.
    return calls_claude is not None and not environ.get("ANTHROPIC_API_KEY", "").strip()


def without_proxy(environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the settings with which HTTP clients use no proxy for this machine: a proxy cannot reach its loopback.

    Python's libraries read both spellings, and prefer the lower-case spelling.
    """
    names = environ.get("no_proxy") or environ.get("NO_PROXY", "")
    # "*" means every host, but only if it stands alone.
    names = names if names.strip() == "*" else ",".join(filter(None, (names, LOOPBACK)))
    return {"NO_PROXY": names, "no_proxy": names}


def variables_of(role: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables of `environ` that a process of `role` gets: no setting and no secret of another role.

    Variables that are no settings go to all processes, for their libraries. Those of backends, and other secrets, go
    only to generators. The simulated Claude, which makes no request, gets none with a password for a proxy or for
    traces.
    """

    def is_needed(name: str) -> bool:
        if name in EVERY_SETTING or name.startswith(PREFIX):
            return name in SETTINGS.get(role, ())
        if name.startswith("OTEL_") or name.lower().endswith("_proxy"):
            return role in SETTINGS
        return role == "generators" or not (name.startswith(ALL_BACKENDS) or SECRET.search(name))

    return {name: value for name, value in environ.items() if is_needed(name)}


def process_specs(options: Options, plan: Plan, environ: Mapping[str, str]) -> list[ProcessSpec]:
    """Returns all processes except nats-server, in the order of their start."""
    given = {
        # `up` itself ends the drain of a generator when it stops. During `tailrace restart`, turns run to their end.
        GRACE: str(GRACE_S_MAX),
        "TAILRACE_CLAUDE_CODE_ROOT": str(options.data_dir / "projects"),
        **environ,
    }
    if is_simulated(environ):
        ours = [name for name in given if name.startswith(ALL_BACKENDS) and not name.startswith(OTHER_BACKENDS)]
        given = {name: value for name, value in given.items() if name not in ours} | simulated_settings(plan)
    fixed = {
        **without_proxy(environ),
        "PYTHONPATH": os.pathsep.join(filter(None, [IMPORT_PATH, environ.get("PYTHONPATH", "")])),
        "PYTHONUNBUFFERED": "1",  # lines appear at once
        "PYTHONSAFEPATH": "1",  # the current directory is not searched for modules
    }
    persistence, *rest = (
        ProcessSpec(
            name=service.name,
            role=service.module,
            command=(sys.executable, "-m", f"tailrace.{service.module}"),
            environ={
                **variables_of(service.module, given),
                **fixed,
                **service.settings,
                "TAILRACE_NATS_URL": plan.nats_urls[service.module],
                "TAILRACE_METRICS_PORT": str(port),
                "TAILRACE_METRICS_TARGETS": str(options.data_dir / METRICS_TARGETS),
            },
            where=(service.where, f"metrics {plan.metrics_check(port).url}"),
            fds=(plan.listen_fd,) if service.module == "gateway" else (),
            readiness=plan.metrics_check(port),
            grace_s=float(environ.get(GRACE, Settings().grace_s)) if service.module == "generators" else GRACE_S,
        )
        for service, port in zip(services(options, plan, environ), plan.metrics_ports, strict=True)
    )
    simulated = [simulated_claude(plan, variables_of("", given) | fixed)] if is_simulated(environ) else []
    return [persistence, *simulated, *rest]


def build_spare(spec: ProcessSpec, port: int) -> ProcessSpec:
    """Returns a further process of the role of `spec`, with its metrics on `port`. A spare is not started again."""
    name = f"{spec.name.rpartition('-')[0]}-spare"
    environ = {**spec.environ, "TAILRACE_METRICS_PORT": str(port), "TAILRACE_GENERATOR": name}
    assert spec.readiness is not None  # noqa: S101  # all services have one
    readiness = spec.readiness._replace(port=port)
    where = (spec.where[0], f"metrics {readiness.url}")
    return msgspec.structs.replace(spec, name=name, environ=environ, where=where, readiness=readiness, is_spare=True)


def services(options: Options, plan: Plan, environ: Mapping[str, str]) -> list[Service]:
    """Returns the services of `up` in the order in which they start: persistence, generators, gateways."""
    database = str(options.data_dir / "tailrace.db")
    gateway = {
        WEBHOOKS: (environ.get(WEBHOOKS) or "true") if environ.get(WEBHOOK_KEY) else "false",
        "TAILRACE_LISTEN_FD": str(plan.listen_fd),
        "TAILRACE_HOST": options.host,
        "TAILRACE_PORT": str(plan.port),
        "TAILRACE_DISK": str(options.data_dir),
        FIRST_KEY_FILE: str(options.data_dir / FIRST_KEY),
        "TAILRACE_OPS_TARGETS": "",  # those of METRICS_TARGETS
        "TAILRACE_DEMO": plan.demo_socket,
    }
    generators, gateways = generator_names(options), gateway_names(options)
    return [
        Service("persistence", "persistence", {"TAILRACE_DATABASE": database}, database),
        *(Service(name, "generators", {"TAILRACE_GENERATOR": name}) for name in generators),
        *(Service(name, "gateway", gateway, plan.url) for name in gateways),
    ]


def generator_names(options: Options) -> list[str]:
    return [f"generator-{number}" for number in range(1, options.generators + 1)]


def gateway_names(options: Options) -> list[str]:
    return [f"gateway-{number}" for number in range(1, options.gateways + 1)]


def simulated_settings(plan: Plan) -> dict[str, str]:
    return {
        "ANTHROPIC_BASE_URL": f"http://127.0.0.1:{plan.claude_port}",
        "ANTHROPIC_API_KEY": SIMULATED_KEY,
    }


def simulated_claude(plan: Plan, environ: Mapping[str, str]) -> ProcessSpec:
    module = "tailrace.deploy.simulated_claude"
    return ProcessSpec(
        name="simulated-claude",
        role=module,
        command=(sys.executable, "-m", module, "--host", "127.0.0.1", "--port", str(plan.claude_port)),
        environ=environ,
        where=(f"http://127.0.0.1:{plan.claude_port}",),
        readiness=HealthCheck(plan.claude_port, "/_sim/stats"),
    )
