"""The processes of `up` and the settings of each."""

from pathlib import Path

import msgspec
import pytest

from tailrace.deploy.local.data_dir import METRICS_TARGETS
from tailrace.deploy.local.options import Options
from tailrace.deploy.local.processes import Plan, process_specs
from tailrace.deploy.local.status_file import write_metrics_targets
from tailrace.deploy.local.supervisor import ProcessSpec
from tailrace.deploy.nats.permissions import RIGHTS
from tailrace.proto.runtime import metrics_targets

PASSWORD, KEY = "password-of", "key-of-claude"
PLAN = Plan(
    nats_urls={user: f"nats://{user}:{PASSWORD}-{user}@127.0.0.1:4222" for user in RIGHTS},
    host="127.0.0.1",
    port=8000,
    listen_fd=7,
    claude_port=9000,
    metrics_ports=(9001, 9002, 9003, 9004, 9005),
)
OPTIONS = Options(data_dir=Path("/data"), generators=2, gateways=2)


def specs_of(environ: dict[str, str]) -> dict[str, ProcessSpec]:
    return {part.name: part for part in process_specs(OPTIONS, PLAN, environ)}


GENERATORS = ["generator-1", "generator-2"]
CLOUD = {"AWS_SECRET_ACCESS_KEY": KEY, "ANTHROPIC_VERTEX_PROJECT_ID": KEY, "GOOGLE_APPLICATION_CREDENTIALS": KEY}
LOGIN = {"CLAUDE_CODE_OAUTH_TOKEN": KEY, "TAILRACE_BACKENDS": "claude_code"}


@pytest.mark.parametrize(
    ("environ", "holders"),
    [
        ({"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": "http://proxy.example"}, GENERATORS),
        (CLOUD, GENERATORS),
        (CLOUD | {"ANTHROPIC_API_KEY": "k"}, GENERATORS),
        (LOGIN, GENERATORS),
        # Another backend needs a key, so nothing real is called.
        (LOGIN | {"TAILRACE_BACKENDS": "claude_code, claude"}, []),
        ({"TAILRACE_WEBHOOK_KEY": KEY}, ["persistence"]),
    ],
    ids=["key of Claude", "clouds", "clouds and Claude", "login", "login and Claude", "webhooks"],
)
def test_a_secret_is_passed_on_unchanged_to_those_that_need_it(environ: dict[str, str], holders: list[str]) -> None:
    """A compromised gateway cannot leak it."""
    found = specs_of(environ)
    assert [name for name, part in found.items() if KEY in part.environ.values()] == holders
    assert all(environ.items() <= dict(found[name].environ).items() for name in holders)


@pytest.mark.rule("S2")
def test_each_process_gets_the_password_of_its_own_nats_user_only() -> None:
    """A compromised process has only the rights of its role."""
    held = {
        name: sorted(user for user in RIGHTS if f"{PASSWORD}-{user}" in " ".join(part.environ.values()))
        for name, part in specs_of({"TAILRACE_NATS_URL": "nats://elsewhere"}).items()
    }
    assert held == {
        "persistence": ["persistence"],
        "simulated-claude": [],
        "generator-1": ["generators"],
        "generator-2": ["generators"],
        "gateway-1": ["gateway"],
        "gateway-2": ["gateway"],
    }


def test_gateways_accept_webhooks_only_if_there_is_a_key() -> None:
    assert specs_of({"TAILRACE_WEBHOOK_KEY": KEY})["gateway-1"].environ["TAILRACE_WEBHOOKS"] == "true"
    assert specs_of({"TAILRACE_WEBHOOKS": "true"})["gateway-1"].environ["TAILRACE_WEBHOOKS"] == "false"
    forbidden = {"TAILRACE_WEBHOOK_KEY": KEY, "TAILRACE_WEBHOOKS": "false"}
    assert specs_of(forbidden)["gateway-1"].environ["TAILRACE_WEBHOOKS"] == "false"


@pytest.mark.parametrize(
    ("environ", "is_simulated"),
    [
        ({"TAILRACE_BACKENDS": "claude"}, True),
        ({"TAILRACE_BACKENDS": "bedrock, claude"}, True),
        ({"TAILRACE_BACKENDS": "vertex; claude-opus-5-5 = claude, vertex"}, True),
        ({"TAILRACE_BACKENDS": "claude_code"}, True),
        ({"TAILRACE_BACKENDS": "bedrock"}, False),
        ({"TAILRACE_BACKENDS": "bedrock; claude-opus-5-5 = vertex"}, False),
        ({"ANTHROPIC_API_KEY": KEY}, False),
        (LOGIN, False),
        (LOGIN | {"TAILRACE_BACKENDS": "claude_code, claude"}, True),
    ],
)
def test_claude_is_simulated_only_for_backends_that_call_anthropic_without_a_key_or_login(
    environ: dict[str, str], *, is_simulated: bool
) -> None:
    assert ("simulated-claude" in specs_of(environ)) is is_simulated


@pytest.mark.parametrize("environ", [{}, {"ANTHROPIC_API_KEY": ""}, {"ANTHROPIC_API_KEY": " \r\n"}])
def test_without_an_api_key_generators_call_the_simulated_claude(environ: dict[str, str]) -> None:
    """It is only another base URL."""
    found = specs_of({**environ, "ANTHROPIC_AUTH_PASSWORD": KEY, "HTTPS_PROXY": "http://proxy.example"})
    settings = found["generator-2"].environ
    assert settings["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9000"
    assert settings["ANTHROPIC_API_KEY"] == "simulated"
    assert "ANTHROPIC_AUTH_PASSWORD" not in settings
    assert "TAILRACE_NATS_URL" not in found["simulated-claude"].environ


@pytest.mark.parametrize(
    ("environ", "hosts"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a.example"}, "a.example,localhost,127.0.0.1,::1"),
        ({"NO_PROXY": "a.example", "no_proxy": ".corp"}, ".corp,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_no_process_uses_a_proxy_for_this_machine(environ: dict[str, str], hosts: str) -> None:
    """The simulated Claude and the metrics of `/ops` are on loopback. Python prefers the spelling in lower case."""
    for spec in specs_of({**environ, "http_proxy": "http://proxy.example"}).values():
        assert (spec.environ["NO_PROXY"], spec.environ["no_proxy"]) == (hosts, hosts)


def test_settings_of_up_reach_all_processes_except_addresses() -> None:
    found = specs_of({"TAILRACE_LOG_FORMAT": "json", "TAILRACE_NATS_URL": "nats://elsewhere", "PYTHONPATH": "/more"})
    settings = found["gateway-1"].environ
    assert (settings["TAILRACE_LOG_FORMAT"], settings["TAILRACE_NATS_URL"]) == ("json", PLAN.nats_urls["gateway"])
    assert settings["PYTHONPATH"].endswith(":/more")


def test_an_ipv6_address_is_in_brackets_in_the_url() -> None:
    """`http://::1:8000` is not a URL."""
    assert Plan(nats_urls={}, host="::1", port=8000, listen_fd=0, claude_port=0, metrics_ports=()).url == (
        "http://[::1]:8000"
    )


def test_the_targets_of_metrics_are_those_of_the_present_processes(tmp_path: Path) -> None:
    """Also after numbers have changed; nats-server and the simulated Claude have no metrics of this form."""
    of_nats = ProcessSpec("nats-server", "nats-server", ("nats-server",), {})
    for generators, gateways in ((1, 1), (3, 2), (1, 1)):
        options = msgspec.structs.replace(OPTIONS, generators=generators, gateways=gateways)
        count = 1 + generators + gateways
        plan = msgspec.structs.replace(PLAN, metrics_ports=tuple(range(9001, 9001 + count)))
        write_metrics_targets(tmp_path, [of_nats, *process_specs(options, plan, {})])
        parts = ["persistence", *["generators"] * generators, *["gateway"] * gateways]
        found = metrics_targets.read(tmp_path / METRICS_TARGETS)
        assert found == {f"127.0.0.1:{port}": part for port, part in zip(plan.metrics_ports, parts, strict=True)}
        assert [file.name for file in tmp_path.iterdir()] == [METRICS_TARGETS]
