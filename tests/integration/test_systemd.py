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


def section(unit: str, name: str = "Service") -> configparser.SectionProxy:
    # Each key once, except EnvironmentFile.
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(HERE / unit)
    return parser[name]


def environment(unit: str) -> dict[str, str]:
    pairs = section(unit)["Environment"].replace("%i", "1").split()
    return dict(pair.split("=", 1) for pair in pairs)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on the PATH")
def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    """With this venv's programs, and as instance 1 of each template."""
    for path in HERE.iterdir():
        text = path.read_text().replace("/opt/tailrace/bin", str(Path(sys.executable).parent))
        (tmp_path / path.name.replace("@.", "@1.")).write_text(text)
    units = [str(path) for path in tmp_path.iterdir()]
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("module", UNITS)
def test_every_setting_exists_and_is_valid(module: str) -> None:
    environ, kind = environment(UNITS[module]), KINDS[module]
    settings.read(kind, environ)
    assert set(environ) <= {settings.env_name(field) for field in kind.__struct_fields__}
    assert section(UNITS[module])["ExecStart"].endswith(f"/python -m tailrace.{module}")


def test_systemd_waits_longer_than_a_drain() -> None:
    """A generator's turns can run to their end."""
    generators = settings.read(GeneratorSettings, environment(UNITS["generators"]))
    assert generators.grace_s >= generators.deadline_s
    assert int(section(UNITS["generators"])["TimeoutStopSec"]) > generators.grace_s + MARGIN_S
    assert int(section(UNITS["gateway"])["TimeoutStopSec"]) > GRACE_S + MARGIN_S


def test_the_socket_and_the_gateway_agree_and_only_a_wrong_setting_ends_the_restarts() -> None:
    """nats-server ends with 1 after any error."""
    port = section("tailrace-gateway@.socket", "Socket")["ListenStream"].replace("%i", "1").rpartition(":")[2]
    assert port == environment(UNITS["gateway"])["TAILRACE_PORT"]
    for path in HERE.glob("*.service"):
        never = None if "nats" in path.name else str(EXIT_USAGE)
        assert section(path.name).get("RestartPreventExitStatus") == never
        assert section(path.name, "Unit")["StartLimitIntervalSec"] == "0"


def test_the_page_names_the_units() -> None:
    page = (CHECKOUT / "docs/SYSTEMD.md").read_text()
    named = re.findall(r"tailrace-(?:nats|persistence|generators@1|gateway@1)(?:\.socket)?", page)
    files = {path.name.removesuffix(".service").replace("@", "@1") for path in HERE.glob("tailrace-*")}
    assert set(named) == files
