"""Which process gets which settings."""

from pathlib import Path

import pytest

from tailrace.deploy.local.options import Options
from tailrace.deploy.local.processes import Plan, process_specs
from tailrace.deploy.local.supervisor import ProcessSpec
from tailrace.proto.nats.permissions import RIGHTS

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


def made(environ: dict[str, str]) -> dict[str, ProcessSpec]:
    return {part.name: part for part in process_specs(OPTIONS, PLAN, environ)}


def test_parts_start_before_those_that_need_them() -> None:
    """Persistence, then the simulated Claude, then generators, then what serves people: stopping is the reverse."""
    names = ["persistence", "simulated-claude", "generator-1", "generator-2", "gateway-1", "gateway-2"]
    assert list(made({})) == names


@pytest.mark.parametrize("environ", [{}, {"ANTHROPIC_API_KEY": KEY}])
def test_no_secret_is_an_argument(environ: dict[str, str]) -> None:
    """Arguments can be read by every user of the machine; secrets go by the environment only."""
    for part in made(environ).values():
        assert PASSWORD not in " ".join(part.command)
        assert KEY not in " ".join(part.command)
        assert PASSWORD not in " ".join(part.where)


def test_the_key_of_claude_reaches_generators_only() -> None:
    """A gateway that is broken into has no key to give away."""
    holders = [part.name for part in made({"ANTHROPIC_API_KEY": KEY}).values() if KEY in part.environ.values()]
    assert holders == ["generator-1", "generator-2"]


@pytest.mark.rule("S2")
def test_each_process_has_its_own_user_of_nats_and_no_other() -> None:
    """Whoever breaks into one can do what that one does, and not what the others do, nor what `up` does."""
    held = {
        name: sorted(user for user in RIGHTS if f"{PASSWORD}-{user}" in " ".join(part.environ.values()))
        for name, part in made({"TAILRACE_NATS_URL": "nats://elsewhere"}).items()
    }
    assert held == {
        "persistence": ["persistence"],
        "simulated-claude": [],
        "generator-1": ["generators"],
        "generator-2": ["generators"],
        "gateway-1": ["gateway"],
        "gateway-2": ["gateway"],
    }


def test_the_key_of_webhooks_reaches_persistence_only() -> None:
    """Gateways are told that there is one, and take webhooks only then."""
    found = made({"TAILRACE_WEBHOOK_KEY": KEY})
    assert [part.name for part in found.values() if KEY in part.environ.values()] == ["persistence"]
    assert found["gateway-1"].environ["TAILRACE_WEBHOOKS"] == "true"
    assert made({"TAILRACE_WEBHOOKS": "true"})["gateway-1"].environ["TAILRACE_WEBHOOKS"] == "false"


def test_the_clouds_credentials_reach_generators_only() -> None:
    """Also where Claude is simulated and another backend is real."""
    given = {"AWS_SECRET_ACCESS_KEY": KEY, "ANTHROPIC_VERTEX_PROJECT_ID": KEY, "GOOGLE_APPLICATION_CREDENTIALS": KEY}
    for environ in (given, given | {"ANTHROPIC_API_KEY": "k"}):
        found = made(environ)
        assert [part.name for part in found.values() if KEY in part.environ.values()] == ["generator-1", "generator-2"]
        assert given.items() <= dict(found["generator-1"].environ).items()


@pytest.mark.parametrize(
    ("backends", "is_simulated"),
    [
        ("claude", True),
        ("bedrock, claude", True),
        ("vertex; claude-opus-5-5 = claude, vertex", True),
        ("claude_code", True),
        ("bedrock", False),
        ("bedrock; claude-opus-5-5 = vertex", False),
    ],
)
def test_claude_is_simulated_for_backends_that_would_ask_it(backends: str, is_simulated: bool) -> None:
    """Whose answers come from elsewhere needs nobody to stand for Anthropic."""
    assert ("simulated-claude" in made({"TAILRACE_BACKENDS": backends})) is is_simulated


def test_with_a_key_nothing_is_simulated() -> None:
    """The owner's key and base URL are passed on as they are."""
    given = {"ANTHROPIC_API_KEY": KEY, "ANTHROPIC_BASE_URL": "http://proxy.example"}
    found = made(given)
    assert "simulated-claude" not in found
    assert given.items() <= dict(found["generator-1"].environ).items()


@pytest.mark.parametrize("environ", [{}, {"ANTHROPIC_API_KEY": ""}])
def test_without_a_key_generators_ask_the_simulated_claude(environ: dict[str, str]) -> None:
    """A first try needs no account: the simulated Claude is only another base URL."""
    found = made({**environ, "ANTHROPIC_AUTH_PASSWORD": KEY, "HTTPS_PROXY": "http://proxy.example"})
    settings = found["generator-2"].environ
    assert settings["ANTHROPIC_BASE_URL"] == "http://127.0.0.1:9000"
    assert settings["ANTHROPIC_API_KEY"] == "simulated"
    assert settings["NO_PROXY"] == "127.0.0.1"
    assert "ANTHROPIC_AUTH_PASSWORD" not in settings
    assert "TAILRACE_NATS_URL" not in found["simulated-claude"].environ


def test_every_gateway_inherits_the_one_socket() -> None:
    """`up` holds the port, so gateways share it, and one that restarts turns nobody away meanwhile."""
    found = made({})
    assert [part.name for part in found.values() if part.fds == (7,)] == ["gateway-1", "gateway-2"]
    assert found["gateway-2"].environ["TAILRACE_LISTEN_FD"] == "7"


def test_every_service_has_a_metrics_port_of_its_own() -> None:
    """Two processes on one port would hide each other's numbers."""
    ports = [part.environ.get("TAILRACE_METRICS_PORT") for part in made({}).values()]
    assert ports == ["9001", None, "9002", "9003", "9004", "9005"]


def test_settings_given_to_up_reach_the_parts_but_do_not_move_them() -> None:
    """Any setting may be turned from outside, except those that `up` has to know."""
    found = made({"TAILRACE_LOG_FORMAT": "json", "TAILRACE_NATS_URL": "nats://elsewhere", "PYTHONPATH": "/more"})
    settings = found["gateway-1"].environ
    assert (settings["TAILRACE_LOG_FORMAT"], settings["TAILRACE_NATS_URL"]) == ("json", PLAN.nats_urls["gateway"])
    assert settings["PYTHONPATH"].endswith(":/more")
    assert made({})["gateway-1"].environ["TAILRACE_LOG_FORMAT"] == "console"


def test_an_address_of_the_sixth_version_is_put_in_brackets() -> None:
    """`http://::1:8000` is not a URL."""
    assert Plan(nats_urls={}, host="::1", port=8000, listen_fd=0, claude_port=0, metrics_ports=()).url == (
        "http://[::1]:8000"
    )
