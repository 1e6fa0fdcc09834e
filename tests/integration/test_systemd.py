"""deploy/systemd: units that systemd accepts, with settings that the product knows and time for each drain."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tailrace.deploy.local.check_environment import SERVICES
from tailrace.features.backends import Settings as GeneratorSettings
from tailrace.gateway.http.server import GRACE_S
from tailrace.proto.runtime import settings
from tailrace.proto.runtime.exit_status import EXIT_USAGE
from tailrace.proto.waiting import BEAT_LATE_S
from tests.harness.processes import CHECKOUT

HERE = CHECKOUT / "deploy/systemd"
KINDS = dict(SERVICES)
# The file of each process.
UNITS = {
    "persistence": "tailrace-persistence.service",
    "generators": "tailrace-generators@.service",
    "gateway": "tailrace-gateway@.service",
}
MARGIN_S = 5
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on the PATH")


def section(unit: str, name: str = "Service") -> configparser.SectionProxy:
    # Each key once, except EnvironmentFile.
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(HERE / unit)
    return parser[name]


def environment(unit: str) -> dict[str, str]:
    pairs = section(unit)["Environment"].replace("%i", "1").split()
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder of the units, with this venv's programs."""
    for path in HERE.iterdir():
        text = path.read_text().replace("/opt/tailrace/bin", str(Path(sys.executable).parent))
        (tmp_path / path.name).write_text(text)
    return tmp_path


def analyze(*arguments: str) -> tuple[int, str]:
    """Returns the status and the errors of systemd-analyze."""
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False, timeout=60)
    return done.returncode, done.stderr


@needs_systemd
def test_systemd_accepts_every_unit(installed: Path) -> None:
    """As a user installs them: templates have no instance then."""
    units = [str(path) for path in installed.iterdir()]
    assert analyze("verify", "--man=no", "--recursive-errors=no", *units) == (0, "")


@needs_systemd
@pytest.mark.parametrize("unit", sorted(path.name for path in HERE.glob("*.service")))
def test_a_unit_has_only_the_rights_that_it_needs(installed: Path, unit: str) -> None:
    """Claude Code, which runs under generators, needs more (a comment in their units)."""
    exposure = 2.5 if "generators" in unit or unit == "tailrace.service" else 1.9
    limits = ("--offline=true", f"--threshold={exposure * 10:.0f}")
    assert analyze("security", *limits, str(installed / unit))[0] == 0


def test_a_variable_inside_of_a_word_is_in_braces() -> None:
    """systemd.service(5): `$NAME` is replaced only as a word of its own. `systemd-analyze verify` does not see it."""
    lines = [line for path in HERE.iterdir() for line in path.read_text().splitlines() if line.startswith("Exec")]
    assert len(lines) > len(UNITS)
    words = [word for line in lines for word in line.partition("=")[2].split()]
    assert [word for word in words if re.search(r"[^$]\$\w|^\$\w+\W", word)] == []


def test_a_unit_is_started_when_its_process_is_ready() -> None:
    """Type=notify. A start may wait for ever; the watchdog allows a longer silence than the process itself."""
    for unit in [*UNITS.values(), "tailrace.service"]:
        service = section(unit)
        assert (service["Type"], service["TimeoutStartSec"], service["WatchdogSignal"]) == (
            "notify",
            "infinity",
            "SIGKILL",
        )
        assert float(service["WatchdogSec"]) > BEAT_LATE_S


@pytest.mark.parametrize("module", UNITS)
def test_every_setting_exists_and_is_valid(module: str) -> None:
    environ, kind = environment(UNITS[module]), KINDS[module]
    settings.read(kind, environ)
    assert set(environ) <= {settings.env_name(field) for field in kind.__struct_fields__}
    assert section(UNITS[module])["ExecStart"].endswith(f"/python -m tailrace.{module}")


@pytest.mark.parametrize("unit", [UNITS["gateway"], "tailrace.service"])
def test_a_gateway_serves_no_request_without_a_credential(unit: str) -> None:
    """Also before the first key, and after a loss of all keys."""
    assert environment(unit)["TAILRACE_ALLOW_ANONYMOUS"] == "false"


def test_each_process_reads_only_the_files_with_its_own_secrets() -> None:
    found = {
        module: re.findall(r"^EnvironmentFile=/etc/tailrace/(.*)$", (HERE / unit).read_text(), re.MULTILINE)
        for module, unit in UNITS.items()
    }
    own = {module: [f"{module}.env"] for module in UNITS}
    assert found == own | {"generators": ["generators.env", "model.env"]}


def test_systemd_waits_longer_than_a_drain() -> None:
    """A generator's turns can run to their end."""
    generators = settings.read(GeneratorSettings, environment(UNITS["generators"]))
    assert generators.grace_s >= generators.deadline_s
    assert int(section(UNITS["generators"])["TimeoutStopSec"]) > generators.grace_s + MARGIN_S
    assert int(section(UNITS["gateway"])["TimeoutStopSec"]) > GRACE_S + MARGIN_S


def test_the_socket_and_the_gateway_agree_and_only_a_wrong_setting_ends_the_restarts() -> None:
    """nats-server ends with 1 after any error."""
    listening = section("tailrace-gateway.socket", "Socket")
    assert listening["ListenStream"].rpartition(":")[2] == environment(UNITS["gateway"])["TAILRACE_PORT"]
    assert listening["Service"] == UNITS["gateway"].replace("@", "@1")
    assert section(UNITS["gateway"])["Sockets"] == "tailrace-gateway.socket"
    for path in HERE.glob("*.service"):
        never = None if "nats" in path.name else str(EXIT_USAGE)
        assert section(path.name).get("RestartPreventExitStatus") == never
        assert section(path.name, "Unit")["StartLimitIntervalSec"] == "0"


def test_the_page_names_the_units() -> None:
    page = (CHECKOUT / "docs/SYSTEMD.md").read_text()
    named = re.findall(r"tailrace-(?:nats|persistence|generators@1|gateway@1|gateway\.socket)", page)
    files = {path.name.removesuffix(".service").replace("@", "@1") for path in HERE.glob("tailrace-*")}
    assert set(named) == files
