"""deploy/kubernetes: each overlay is rendered as docs/KUBERNETES.md says, and checked without a cluster."""

import base64
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import msgspec
import pytest

from tailrace.deploy.cli.nats_config import PORT, TO_CLUSTER, TO_MONITORING
from tailrace.deploy.local.check_environment import SERVICES
from tailrace.deploy.local.nats_server import GIB
from tailrace.features.backends import Settings as GeneratorSettings
from tailrace.features.gateway import ROUTES
from tailrace.features.persistence import DATABASES
from tailrace.gateway.http.server import GRACE_S
from tailrace.proto.runtime import settings
from tailrace.proto.service import HEALTH_CHECKS
from tailrace.proto.version import VERSION
from tests.harness.processes import CHECKOUT
from tools.reference_tables import metrics_tables

BIN = Path(sys.executable).parent
HERE = CHECKOUT / "deploy/kubernetes"
OVERLAYS = ("small", "three-nats", "postgresql", "production")
VERSIONS = ("1.30", "1.37")
WORKLOADS = ("Deployment", "StatefulSet", "Job")
SCALED_OBJECT = {"scaleTargetRef", "minReplicaCount", "maxReplicaCount", "pollingInterval", "advanced", "triggers"}
# What nats-server and a drain of the gateway need besides their own times.
MARGIN_S = 5
# The share of a node that the system's own pods leave.
FOR_TAILRACE = 0.75
LAME_DUCK_S = 31
# Secrets of a process besides those of its own name.
MORE_SECRETS = {"generators": {"model"}, "persistence": {"database"}}

Document = dict[str, Any]


@cache
def load_validator() -> ModuleType:
    """Returns kubernetes_validate, patched to read its definitions once: each reading takes seconds of CPU.

    Imported here, because the import takes two seconds, and only one worker runs these tests.
    """
    from kubernetes_validate import utils  # type: ignore[import-untyped]

    utils.schema_contents = cache(utils.schema_contents)
    return cast(ModuleType, utils)


@cache
def validate(document: bytes, version: str) -> None:
    """Validates a document once: the overlays have most of them in common."""
    load_validator().validate(msgspec.json.decode(document), version, strict=True)


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> str:
    environ = os.environ | {"PATH": f"{BIN}:/usr/bin:/bin", "PYTHONPATH": str(CHECKOUT)} | environ
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands(overlay: str) -> Iterator[str]:
    """The commands of steps 3 to 5, as the page says for an overlay."""
    blocks = re.findall(r"   ```sh\n(.*?)   ```", (CHECKOUT / "docs/KUBERNETES.md").read_text(), re.DOTALL)
    certificates, configure, key, database = (re.sub(r"(?m)^   ", "", block) for block in blocks[1:5])
    yield from (
        [certificates, configure] if overlay == "production" else [configure.replace("--tls /etc/tailrace/tls", "")]
    )
    yield key.replace("…", "sk-test")
    if overlay == "postgresql":
        yield database.replace("…", "tailrace:secret@db.internal/tailrace")


@pytest.fixture(scope="module", params=OVERLAYS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def small(tmp_path: Path) -> str:
    return render("small", tmp_path)


def render(name: str, folder: Path) -> str:
    """Returns the manifests of an overlay, after the commands of the page."""
    shutil.copytree(HERE, folder / "kubernetes")
    overlay = folder / "kubernetes/overlays" / name
    for command in commands(name):
        servers = re.sub(r"--server nats-[23]\S*", "", command) if name == "small" else command
        run("bash", "-euc", servers, cwd=overlay)
    return run("kubectl", "kustomize", overlay)


def documents(text: str) -> list[Document]:
    return [msgspec.yaml.decode(part) for part in text.split("\n---\n")]


def of_kinds(kinds: tuple[str, ...], all_: list[Document]) -> dict[str, Document]:
    return {one["metadata"]["name"]: one for one in all_ if one["kind"] in kinds}


def pod(workload: Document) -> Document:
    return workload["spec"]["template"]["spec"]  # type: ignore[no-any-return]


def container(workload: Document) -> Document:
    (found,) = pod(workload)["containers"]
    return found  # type: ignore[no-any-return]


def secrets(all_: list[Document]) -> dict[str, dict[str, str]]:
    found = of_kinds(("Secret",), all_)
    return {
        name: {key: base64.b64decode(text).decode() for key, text in one["data"].items()} for name, one in found.items()
    }


def environment(workload: Document, all_: list[Document]) -> dict[str, str]:
    given = {one["name"]: one["value"] for one in container(workload)["env"] if "value" in one}
    for source in container(workload).get("envFrom", []):
        given |= secrets(all_)[source["secretRef"]["name"]]
    return given


def services(all_: list[Document]) -> dict[str, Document]:
    """The workloads that run a process with settings, by the name of its module."""
    workloads = of_kinds(WORKLOADS, all_)
    return {name: workloads[name] for name, _ in SERVICES}


def check_fields(all_: list[Document], _: Path) -> None:
    """All fields, against the schemas of Kubernetes. KEDA makes an autoscaler of each ScaledObject."""
    scaled = of_kinds(("ScaledObject",), all_)
    behaviours = [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": {
                "maxReplicas": one["spec"]["maxReplicaCount"],
                "minReplicas": one["spec"]["minReplicaCount"],
                "scaleTargetRef": {"kind": "Deployment", **one["spec"]["scaleTargetRef"]},
                **one["spec"]["advanced"]["horizontalPodAutoscalerConfig"],
            },
        }
        for name, one in scaled.items()
    ]
    for version, one in product(VERSIONS, [*all_, *behaviours]):
        if one["kind"] != "ScaledObject":
            validate(msgspec.json.encode(one, order="sorted"), version)
    for name, one in scaled.items():
        assert set(one["spec"]) == SCALED_OBJECT
        assert "replicas" not in of_kinds(("Deployment",), all_)[name]["spec"]


def check_settings(all_: list[Document], _: Path) -> None:
    for name, workload in services(all_).items():
        environ = environment(workload, all_)
        kind = dict(SERVICES)[name]
        settings.read(kind, environ)
        assert set(environ) <= {settings.env_name(field) for field in kind.__struct_fields__}
        assert container(workload)["args"] == [f"tailrace.{name}"]
        assert container(workload)["image"] == f"tailrace:{VERSION.split('+')[0]}"
    # Each process has its own secrets only, and every request needs a credential, also without any key.
    for name, workload in services(all_).items():
        # kustomize adds a hash.
        secret_names = {one["secretRef"]["name"].rpartition("-")[0] for one in container(workload)["envFrom"]}
        assert secret_names <= {name, *MORE_SECRETS.get(name, ())}
    assert environment(services(all_)["gateway"], all_)["TAILRACE_ALLOW_ANONYMOUS"] == "false"
    # Only a database on a server has several processes, and only a file has a volume.
    persistence = services(all_)["persistence"]
    is_file = not DATABASES.is_url(environment(persistence, all_)["TAILRACE_DATABASE"])
    assert is_file == ("volumeClaimTemplates" in persistence["spec"]) == (persistence["spec"]["replicas"] == 1)
    # A Service named `gateway` would add variables such as GATEWAY_PORT, and one named `tailrace` TAILRACE_PORT.
    assert not any(pod(workload)["enableServiceLinks"] for workload in of_kinds(WORKLOADS, all_).values())


def check_probes(all_: list[Document], _: Path) -> None:
    routes = {route.path for route in ROUTES}
    for name, workload in services(all_).items():
        found, environ = container(workload), environment(workload, all_)
        ports = {one["name"]: one["containerPort"] for one in found["ports"]}
        assert ports["metrics"] == int(environ["TAILRACE_METRICS_PORT"])
        assert ports.get("http", 8000) == 8000
        # A process that waits at its start is alive, and not ready.
        assert found["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
        for probe in (found["readinessProbe"]["httpGet"], found["livenessProbe"]["httpGet"]):
            assert probe["path"] in (routes if probe["port"] == "http" else set(HEALTH_CHECKS)), f"{name}: {probe}"
    nats = container(of_kinds(WORKLOADS, all_)["nats"])
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert f"http://127.0.0.1:{PORT + TO_MONITORING}/healthz" in nats[kind]["exec"]["command"][-1]


def check_nats(all_: list[Document], tmp_path: Path) -> None:
    """Each pod has a configuration that nats-server accepts. Processes and servers know the servers by their pods."""
    stateful, job = of_kinds(("StatefulSet",), all_)["nats"], of_kinds(("Job",), all_)["streams"]
    first, count = stateful["spec"]["ordinals"]["start"], stateful["spec"]["replicas"]
    names = [f"nats-{number}" for number in range(first, first + count)]
    volumes = {one["name"]: one.get("secret", {}).get("secretName") for one in pod(stateful)["volumes"]}
    files = secrets(all_)[volumes["config"]]
    assert set(files) == {f"{name}.conf" for name in names}
    assert container(stateful)["command"][2] == "/etc/nats/$(POD).conf"
    folder = tmp_path / "tls"
    folder.mkdir(exist_ok=True)
    for name, text in secrets(all_).get(volumes.get("tls") or "", {}).items():
        (folder / name).write_text(text)
    for name, text in files.items():
        path = tmp_path / name
        path.write_text(text.replace("/etc/tailrace/tls", str(folder)).replace("/data", str(tmp_path / "data")))
        run("nats-server", "-t", "-c", path)
        found = msgspec.json.decode(text)
        assert found["server_name"] == name.removesuffix(".conf")
        routes = {re.sub(r".*@", "", route) for route in found.get("cluster", {}).get("routes", [])}
        assert routes == {f"{other}.nats:{PORT + TO_CLUSTER}" for other in names if f"{other}.conf" != name}
        (claim,) = stateful["spec"]["volumeClaimTemplates"]
        gib = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi"))
        assert gib > found["jetstream"]["max_file_store"] / GIB
    assert container(job)["args"] == ["streams", "--gib", "10", "--replicas", str(count)]
    for workload in (*services(all_).values(), job):
        given = {"env": [], **container(workload)}
        urls = environment({"spec": {"template": {"spec": {"containers": [given]}}}}, all_)["TAILRACE_NATS_URL"]
        assert [re.sub(r".*@|\?.*", "", url) for url in urls.split(",")] == [f"{name}.nats:{PORT}" for name in names]
        assert pod(workload)["automountServiceAccountToken"] is False
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert labels["tailrace/nats"] == "client"


def check_grace(all_: list[Document], _: Path) -> None:
    """Each process has more time to stop than its drain takes. A generator's turns can run to their end."""
    workloads = of_kinds(WORKLOADS, all_)
    generators = settings.read(GeneratorSettings, environment(workloads["generators"], all_))
    assert generators.grace_s >= generators.deadline_s
    assert pod(workloads["generators"])["terminationGracePeriodSeconds"] > generators.grace_s + MARGIN_S
    sleep_s = container(workloads["gateway"])["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(workloads["gateway"])["terminationGracePeriodSeconds"] > sleep_s + GRACE_S + MARGIN_S
    assert pod(workloads["nats"])["terminationGracePeriodSeconds"] > LAME_DUCK_S + MARGIN_S


def check_scheduling(all_: list[Document], _: Path) -> None:
    """No pod that waits takes the place of nats or persistence while they restart."""
    (priority,) = of_kinds(("PriorityClass",), all_)
    workloads = of_kinds(WORKLOADS, all_)
    assert {name for name, one in workloads.items() if pod(one).get("priorityClassName") == priority} == {
        "nats",
        "persistence",
    }


CHECKS: tuple[Callable[[list[Document], Path], None], ...] = (
    check_fields,
    check_settings,
    check_probes,
    check_nats,
    check_grace,
    check_scheduling,
)


def amount(text: str) -> float:
    """Returns a quantity of CPUs, or of bytes in GiB."""
    units = {"m": 0.001, "Mi": 1 / 1024, "Gi": 1.0, "": 1.0}
    found = re.fullmatch(r"(\d+)(\w*)", text)
    assert found is not None
    return int(found[1]) * units[found[2]]


def requested(all_: list[Document], resource: str) -> float:
    """Returns what all pods request during a rollout of every Deployment, while the Job runs."""
    total = 0.0
    for one in of_kinds(WORKLOADS, all_).values():
        pods = one["spec"].get("replicas", 1)
        if one["kind"] == "Deployment":
            surge = str(one["spec"]["strategy"]["rollingUpdate"]["maxSurge"])
            pods += math.ceil(pods * int(surge.rstrip("%")) / 100) if surge.endswith("%") else int(surge)
        total += pods * amount(container(one)["resources"]["requests"][resource])
    return total


def test_a_rollout_of_small_fits_on_the_node_that_the_page_names(small: str) -> None:
    """Without the share of the system's own pods."""
    page = (CHECKOUT / "docs/KUBERNETES.md").read_text()
    node = re.search(r"A node with (\d+) CPUs and (\d+) GiB has room", page)
    assert node is not None
    for resource, size in zip(("cpu", "memory"), node.groups(), strict=True):
        assert requested(documents(small), resource) <= FOR_TAILRACE * int(size)


def test_an_upgrade_first_runs_the_job_alone(small: str) -> None:
    """A bad image stops there: a StatefulSet would lose its only pod."""
    page = (CHECKOUT / "docs/KUBERNETES.md").read_text()
    first, *_ = re.findall(r"kubectl .*apply -k .*", page.partition("### Upgrade")[2])
    selector = re.search(r"--selector (\S+)=(\S+)", first)
    assert selector is not None, first
    selected = [one for one in documents(small) if one["metadata"].get("labels", {}).get(selector[1]) == selector[2]]
    assert [(one["kind"], one["metadata"]["name"]) for one in selected] == [("Job", "streams")]


def test_the_command_of_the_first_start_adds_new_to_the_job_alone(manifests: str, tmp_path: Path) -> None:
    """Upgrades apply the files as they are: after that, a lost log is not created again."""
    page = (CHECKOUT / "docs/KUBERNETES.md").read_text()
    (command,) = re.findall(r"kubectl kustomize \. \| (sed .*) \| kubectl apply -f -", page)
    (tmp_path / "manifests").write_text(manifests)
    first = documents(run("bash", "-c", f"{command} < manifests", cwd=tmp_path))
    jobs = [of_kinds(("Job",), all_)["streams"] for all_ in (first, documents(manifests))]
    added, plain = (container(job)["args"] for job in jobs)
    assert added == ["streams", "--new", *plain[1:]]
    assert [one for one in first if one["kind"] != "Job"] == [
        one for one in documents(manifests) if one["kind"] != "Job"
    ]


def test_every_overlay_fits_kubernetes_and_the_product(manifests: str, tmp_path: Path) -> None:
    for check in CHECKS:
        check(documents(manifests), tmp_path)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not on the PATH")
def test_prometheus_accepts_the_job_and_the_queries(tmp_path: Path) -> None:
    """The queries name metrics that the product exports. Debian builds Prometheus without Kubernetes."""
    (tmp_path / "prometheus.yml").write_text(
        re.sub(r"kubernetes_sd_configs:\n.*\n.*\n", "static_configs: []\n", (HERE / "prometheus.yml").read_text())
    )
    run("promtool", "check", "config", tmp_path / "prometheus.yml")
    metrics = re.findall(r"^\| `(\w+)`", metrics_tables(), re.MULTILINE)
    objects = documents((HERE / "components/scaling/scaled-objects.yaml").read_text())
    queries = [trigger["metadata"]["query"] for one in objects for trigger in one["spec"]["triggers"]]
    rules = {"groups": [{"name": "keda", "rules": [{"record": "keda", "expr": query} for query in queries]}]}
    (tmp_path / "rules.yml").write_bytes(msgspec.yaml.encode(rules))
    run("promtool", "check", "rules", "--lint=none", tmp_path / "rules.yml")
    assert {name for query in queries for name in re.findall(r"(\w+)\{", query)} <= set(metrics)
