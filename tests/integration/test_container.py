"""The Dockerfile and the Compose file: checked by their own programs, and run without a daemon.

`tests/harness/container.py` says what of Docker is replaced.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tailrace.deploy.local.check_environment import SERVICES
from tailrace.features.backends import Settings as GeneratorSettings
from tailrace.proto.runtime import settings
from tailrace.proto.version import VERSION
from tests.harness.container import PACKAGES, Host, Image, needs_namespaces, service
from tests.harness.processes import CHECKOUT
from tests.harness.until import until

BIN = Path(sys.executable).parent
HERE = CHECKOUT / "deploy/container"
COMPOSE, POSTGRESQL = HERE / "compose.yaml", HERE / "postgresql.yaml"
USERS = ("ADMIN", "GATEWAY", "GENERATORS", "PERSISTENCE")
VARIABLES = {f"TAILRACE_{user}_PASSWORD": f"p{user.lower()}" for user in (*USERS, "DATABASE")}
START_S_MAX = 40.0
# Programs of images that are not ours, as Debian and PyPI have them.
PROGRAMS = {"nats": ["nats-server"], "nginx": ["prlimit", "--nofile=256:", "nginx", "-g", "daemon off;"]}
# Copies that have an address of their own in Docker's network.
HOSTS = {"gateway-1": "127.0.0.2", "gateway-2": "127.0.0.3"}
MODULES = {"gateway-1": "gateway", "gateway-2": "gateway", "generators": "generators", "persistence": "persistence"}


def run_check(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def require_program(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} is not on the PATH")


def mount_files(name: str, tmp_path: Path) -> Path:
    """A folder with the files of a service at their paths in its container."""
    for volume in service(COMPOSE, name, VARIABLES)["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith("."):
            (tmp_path / target.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / target.lstrip("/")).symlink_to((HERE / source).resolve(strict=True))
    return tmp_path


def test_the_dockerfile_and_the_compose_file_are_valid() -> None:
    """By hadolint, and by the JSON Schema of the Compose specification."""
    run_check(BIN / "hadolint", HERE / "Dockerfile")
    run_check(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE, POSTGRESQL)


@pytest.mark.parametrize("file", [COMPOSE, POSTGRESQL], ids=lambda path: path.name)
def test_the_log_of_each_service_is_bounded(file: Path) -> None:
    """Docker keeps every line otherwise, until the disk is full."""
    names = msgspec.yaml.decode(file.read_text())["services"]
    services = {name: service(file, name, VARIABLES) for name in names}
    unbounded = [
        name
        for name, one in services.items()
        # A service of both files has what the first says.
        if "image" in one and not {"max-size", "max-file"} <= set(one.get("logging", {}).get("options", ()))
    ]
    assert unbounded == []


def test_one_service_builds_the_image_of_all() -> None:
    """Compose gives each service that builds an image of its own, so the next `up` would replace all containers."""
    services = msgspec.yaml.decode(COMPOSE.read_bytes())["services"]
    assert [name for name, found in services.items() if "build" in found] == ["streams"]
    for name in (*MODULES, "simulated-claude", "streams"):
        found = service(COMPOSE, name, VARIABLES)
        # Compose would look for it in a registry.
        assert (found["image"], found["pull_policy"]) == (f"tailrace:{VERSION}", "never")


def test_docker_makes_no_volume_without_a_name() -> None:
    """`docker rm` leaves such a volume behind. Alertmanager, Prometheus and PostgreSQL declare one in their images."""
    assert not re.search(r"^VOLUME", (HERE / "Dockerfile").read_text(), re.MULTILINE)
    declared = {"alertmanager": "/alertmanager", "prometheus": "/prometheus", "postgresql": "/var/lib/postgresql/data"}
    for name, path in declared.items():
        file = POSTGRESQL if name == "postgresql" else COMPOSE
        targets = [volume.split(":")[1] for volume in service(file, name, VARIABLES)["volumes"]]
        assert path in targets, name
        assert name in msgspec.yaml.decode(file.read_text())["volumes"]


def test_a_service_is_healthy_when_its_process_is_ready() -> None:
    """`up --wait` of an upgrade must not go on while a gateway waits for NATS."""
    for name in MODULES:
        assert "http://127.0.0.1:9100/readyz" in service(COMPOSE, name, VARIABLES)["healthcheck"]["test"][-1]


@require_program("promtool")
def test_prometheus_accepts_its_files(tmp_path: Path) -> None:
    run_check(
        "promtool", "check", "config", "prometheus.yml", cwd=mount_files("prometheus", tmp_path) / "etc/prometheus"
    )


@require_program("amtool")
def test_alertmanager_accepts_its_file(tmp_path: Path) -> None:
    folder = mount_files("alertmanager", tmp_path) / "etc/alertmanager"
    run_check("amtool", "check-config", folder / "alertmanager.yml")


def test_grafana_has_the_data_source_and_the_folder_of_the_dashboards(tmp_path: Path) -> None:
    """Grafana itself is in no registry that the tests use."""
    root = mount_files("grafana", tmp_path)
    provisioning = root / "etc/grafana/provisioning"
    (source,) = msgspec.yaml.decode((provisioning / "datasources/tailrace.yml").read_bytes())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = msgspec.yaml.decode((provisioning / "dashboards/tailrace.yml").read_bytes())["providers"]
    pages = list((root / provider["options"]["path"].lstrip("/")).glob("*.json"))
    assert all(f'"uid": "{source["uid"]}"' in page.read_text() for page in pages if "turn" not in page.name)
    environ = service(COMPOSE, "grafana", VARIABLES)["environment"]
    assert (root / environ["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"].lstrip("/")).exists()
    # Its first administrator is admin with the password admin.
    assert (environ["GF_AUTH_DISABLE_LOGIN_FORM"], environ["GF_AUTH_BASIC_ENABLED"]) == ("true", "false")


@pytest.mark.parametrize(
    ("name", "files"), [*((name, (COMPOSE,)) for name in MODULES), ("persistence", (COMPOSE, POSTGRESQL))]
)
def test_every_setting_of_a_service_exists_and_is_valid(name: str, files: tuple[Path, ...]) -> None:
    """Two processes of persistence need a database on a server, which is reached by the name of its service."""
    kind = dict(SERVICES)[MODULES[name]]
    services = [service(file, name, VARIABLES) for file in files]
    environ = {key: value for one in services for key, value in one["environment"].items()}
    if len(files) > 1:
        server = service(POSTGRESQL, "postgresql", VARIABLES)["environment"]
        user, password = server["POSTGRES_USER"], server["POSTGRES_PASSWORD"]
        assert environ["TAILRACE_DATABASE"] == f"postgresql://{user}:{password}@postgresql:5432/{user}"
    settings.read(kind, environ)
    known = {settings.env_name(field) for field in kind.__struct_fields__}
    assert {variable for variable in environ if not variable.startswith("OTEL_")} <= known


def test_each_service_has_only_its_own_secrets() -> None:
    """nats-server knows all passwords, and no service but nginx and the tools of monitoring can be reached."""
    given = {**VARIABLES, "ANTHROPIC_API_KEY": "pmodel"}
    names = msgspec.yaml.decode(COMPOSE.read_bytes())["services"]
    found = {name: " ".join(service(COMPOSE, name, given).get("environment", {}).values()) for name in names}
    held = {name: {value for value in given.values() if value in text} for name, text in found.items()}
    assert {name: secrets for name, secrets in held.items() if secrets} == {
        "nats": {"padmin", "pgateway", "pgenerators", "ppersistence"},
        "streams": {"padmin"},
        "persistence": {"ppersistence"},
        "generators": {"pgenerators", "pmodel"},
        "gateway-1": {"pgateway"},
        "gateway-2": {"pgateway"},
    }


def test_the_page_closes_the_gateways_with_the_first_key() -> None:
    """They serve requests without a key before, and none afterwards, also if all keys are lost."""
    page = (CHECKOUT / "docs/CONTAINERS.md").read_text()
    _, _, step = page.partition("keys create --tenant acme\n")
    (line,) = re.findall(r"Add `(TAILRACE_ALLOW_ANONYMOUS=\w+)` to `\.env`", step)
    name, _, value = line.partition("=")
    kind = dict(SERVICES)["gateway"]
    for given, allowed in ({}, True), ({name: value}, False):
        environ = service(COMPOSE, "gateway-1", {**VARIABLES, **given})["environment"]
        assert settings.read(kind, environ).allow_anonymous is allowed  # type: ignore[attr-defined]


def test_the_base_image_is_pinned_by_its_digest() -> None:
    """A tag names another image after each of its builds."""
    bases = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", (HERE / "Dockerfile").read_text(), re.MULTILINE)
    stages = {stage for _, stage in bases}
    foreign = [base for base, _ in bases if base not in stages]
    assert foreign
    assert [base for base in foreign if re.fullmatch(r"\S+:\S+@sha256:[0-9a-f]{64}", base) is None] == []


@pytest.mark.rule("R100")
def test_docker_waits_longer_than_a_drain_in_which_every_turn_can_end() -> None:
    generators = service(COMPOSE, "generators", VARIABLES)
    found = settings.read(GeneratorSettings, generators["environment"])
    assert found.grace_s >= found.deadline_s
    assert int(generators["stop_grace_period"].removesuffix("s")) > found.grace_s + 5


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A folder with what the Dockerfile copies."""
    folder = tmp_path / "context"
    (folder / "dist").mkdir(parents=True)
    command = [str(BIN / "uv"), "build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--wheel", "--out-dir", str(folder / "dist"), str(CHECKOUT)], check=True, timeout=60)
    (folder / "locks").mkdir()
    shutil.copy(CHECKOUT / "locks/container.lock", folder / "locks")
    return folder


@pytest.fixture
def pip_environ() -> dict[str, str]:
    """Variables with which pip finds the locked packages in this venv, so that the test needs no network.

    With CONTAINER_FROM_INDEX=1, pip installs them from the index, as Docker does: `make release`.
    """
    if os.environ.get("CONTAINER_FROM_INDEX"):
        return {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
    return {"PYTHONPATH": PACKAGES, "PIP_NO_INDEX": "1"}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with Host(tmp_path) as host:
        yield host


class Running:
    """The services of the Compose file that answer a turn, in the order of their dependencies."""

    def __init__(self, host: Host, image: Image, folder: Path, packages: dict[str, str]) -> None:
        self._host, self._image, self._folder, self._packages = host, image, folder, packages
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, metrics_port: int = 0, command: list[str] | None = None) -> subprocess.Popen[bytes]:
        found = service(COMPOSE, name, VARIABLES)
        environ = self._packages | found.get("environment", {})
        if metrics_port:
            environ |= {"TAILRACE_METRICS_PORT": str(metrics_port)}
        if name in HOSTS:
            environ |= {"TAILRACE_HOST": HOSTS[name]}
        start = PROGRAMS.get(name) or found.get("entrypoint", self._image.entrypoint)
        with (self._folder / f"{name}.log").open("ab") as log:
            os.fchown(log.fileno(), 10001, 10001)  # as Docker gives the user its output
            process = self._host.start(
                self._image,
                [*start, *(command or found.get("command", []))],
                environ,
                self._volumes(name, found),
                log.fileno(),
            )
        self.processes[name] = process
        return process

    def _volumes(self, name: str, found: dict[str, Any]) -> dict[str, Path]:
        volumes = {"/usr/local/bin/nats-server": BIN / "nats-server"} if name == "nats" else {}
        for volume in found.get("volumes", []):
            source, target, *_ = volume.split(":")
            path = (HERE / source).resolve() if source.startswith(".") else self._folder / source.replace("/", "-")
            if not source.startswith("."):
                path.mkdir(exist_ok=True)
                os.chown(path, 10001, 10001)
            volumes.setdefault(target, path)
        return volumes

    def client(self, code: str) -> str:
        """Runs Python in the containers' network; returns its output, or an empty text if it failed."""
        head = "import urllib.request as u\nu.install_opener(u.build_opener(u.ProxyHandler({})))\n"
        command = [*self._host.command_prefix(network=True), sys.executable, "-c", head + code]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60).stdout

    def user(self, name: str) -> int:
        return Path(f"/proc/{self.processes[name].pid}").stat().st_uid

    def logs(self) -> str:
        return "\n".join(f"{path.name}: {path.read_text()[-2000:]}" for path in self._folder.glob("*.log"))


@needs_namespaces
@require_program("nginx")
@pytest.mark.timeout(400)
async def test_the_image_answers_a_turn_behind_nginx_read_only_and_as_another_user(
    host: Host, context: Path, pip_environ: dict[str, str], tmp_path: Path
) -> None:
    """Each step of the Dockerfile runs, then the services of the Compose file, with their own settings."""
    image = host.build((HERE / "Dockerfile").read_text(), context, pip_environ)
    names = ["nats", "generators", "persistence", "simulated-claude"]
    hosts = "".join(f"{HOSTS.get(name, '127.0.0.1')} {name}\n" for name in (*names, *HOSTS))
    (tmp_path / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    host.sh('cp "$1" "$2"', tmp_path / "hosts", image.root / "etc/hosts")
    running = Running(host, image, tmp_path, {"PYTHONPATH": pip_environ.get("PYTHONPATH", "")})

    async def answers(url: str, text: str = "") -> None:
        await until(lambda: text in running.client(f"print(u.urlopen({url!r}).read().decode())"), START_S_MAX, 0.2)

    try:
        running.start("nats")
        await answers("http://127.0.0.1:8222/healthz", '"status":"ok"')
        assert running.start("streams", command=["streams", "--new", "--gib", "10"]).wait(START_S_MAX) == 0
        for number, name in enumerate(("persistence", "generators", "gateway-1", "gateway-2", "simulated-claude")):
            running.start(name, 0 if name == "simulated-claude" else 9100 + number)
        for name, address in HOSTS.items():
            await answers(f"http://{address}:8000/readyz", '"ok":true')
            assert running.user(name) == 10001
        running.start("nginx")
        await answers("http://127.0.0.1:8080/readyz", '"ok":true')
        refused = "try: u.urlopen('http://127.0.0.1:8080/metrics')\nexcept u.HTTPError as error: print(error.code)"
        assert running.client(refused) == "404\n"
        # nginx raises its soft limit of files: Docker's is 1024, and that of this test 256.
        idle = "import socket\nidle = [socket.create_connection(('127.0.0.1', 8080)) for _ in range(300)]\n"
        assert running.client(f"{idle}print(u.urlopen('http://127.0.0.1:8080/readyz', timeout=10).status)") == "200\n"
        ask = (
            "print(u.urlopen(u.Request('http://127.0.0.1:8080/v1/turns', b'{\"message\": \"Hi.\\\\n#sim words=3\"}',"
            " {'content-type': 'application/json', 'accept': 'text/event-stream'})).read().decode())"
        )
        answer = running.client(ask)
        assert "w000002" in answer, answer
        touch = host.start(image, ["touch", "/opt/tailrace/x"], {}, {}, subprocess.PIPE)
        assert b"Read-only file system" in touch.communicate(timeout=START_S_MAX)[1]

        for name in ("gateway-1", "generators", "persistence"):
            running.processes[name].terminate()
            assert running.processes[name].wait(START_S_MAX) == 0
    except AssertionError as error:
        raise AssertionError(f"{error}\n{running.logs()}") from error
