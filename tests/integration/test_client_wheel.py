"""The distribution of the client alone, beside the server's: installed in both orders, and one of them removed."""

import asyncio
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tailrace.proto.version import VERSION
from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT, inherited_environ
from tests.integration.conftest import KEY, Gateway

UV = Path(sys.executable).parent / "uv"
SITE = Path(str(importlib.metadata.distribution("httpx2").locate_file("")))
# What each distribution lets a program import.
CLIENT = "from tailrace import AsyncResumingTransport, Client, proxy; import tailrace.client.core"
SERVER = "import tailrace.gateway.settings, tailrace.testing"
ASK = "import sys; from tailrace import Client; print(Client(*sys.argv[1:3]).ask(sys.argv[3]).done().text)"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the client and of the server."""
    folder = tmp_path_factory.mktemp("dist")
    command = [str(UV), "build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable]
    for source in (CHECKOUT, CHECKOUT / "client"):
        subprocess.run([*command, "--wheel", "--out-dir", str(folder), str(source)], check=True, timeout=60)
    (client,), (server,) = folder.glob("tailrace_client-*.whl"), folder.glob("tailrace-*.whl")
    return {"tailrace-client": client, "tailrace": server}


class Venv:
    """A virtual environment, in which other packages come from that of the tests if `packages` names them."""

    def __init__(self, folder: Path, packages: set[str] | None = None) -> None:
        subprocess.run([str(UV), "venv", "--quiet", "--python", sys.executable, str(folder)], check=True, timeout=60)
        self.python = folder / "bin/python"
        (site,) = folder.glob("lib/python*/site-packages")
        others = SITE
        if packages is not None:
            others = folder / "others"
            others.mkdir()
            for package in packages:
                for file in importlib.metadata.files(package) or ():
                    top = Path(str(file)).parts[0]
                    if top != ".." and not (others / top).exists():
                        (others / top).symlink_to(SITE / top)
        (site / "others.pth").write_text(f"{others}\n")

    def pip(self, *arguments: str) -> None:
        command = [str(UV), "pip", *arguments, "--quiet", "--offline", "--python", str(self.python)]
        subprocess.run(command, check=True, timeout=60)

    def install(self, wheel: Path) -> None:
        self.pip("install", "--no-deps", str(wheel))

    def run(self, program: str, *arguments: str) -> str:
        """Returns what a program prints, or the last line of its error."""
        command = [str(self.python), "-P", "-c", program, *arguments]
        ran = subprocess.run(
            command, cwd="/", env=inherited_environ(), capture_output=True, text=True, check=False, timeout=60
        )
        return ran.stdout if ran.returncode == 0 else ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("first", ["tailrace", "tailrace-client"])
@pytest.mark.parametrize("removed", ["tailrace", "tailrace-client"])
def test_both_are_installed_in_any_order_and_one_is_removed(
    wheels: dict[str, Path], tmp_path: Path, first: str, removed: str
) -> None:
    """They have no file in common."""
    venv = Venv(tmp_path / "venv")
    for name in sorted(wheels, key=first.__ne__):
        venv.install(wheels[name])
    assert (venv.run(CLIENT), venv.run(SERVER)) == ("", "")
    venv.pip("uninstall", removed)
    assert venv.run(CLIENT) == ""
    assert venv.run(SERVER) == (
        "" if removed == "tailrace-client" else "ModuleNotFoundError: No module named 'tailrace.gateway'"
    )


async def test_the_client_alone_needs_only_its_dependencies(
    wheels: dict[str, Path], tmp_path: Path, gateway: Gateway
) -> None:
    """It is pure Python, and reads an answer."""
    venv = Venv(tmp_path / "venv", dependencies(declared()))
    venv.install(wheels["tailrace-client"])
    assert venv.run(CLIENT) == ""
    assert venv.run("import starlette") == "ModuleNotFoundError: No module named 'starlette'"
    answer = await asyncio.to_thread(venv.run, ASK, gateway.url, KEY, "#sim words=3 rate=0")
    assert answer == f"{words(3)}\n"
    assert wheels["tailrace-client"].name.endswith("-py3-none-any.whl")


def declared() -> list[str]:
    project = tomllib.loads((CHECKOUT / "client/pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    requirements: list[str] = project["dependencies"]
    return requirements


def dependencies(requirements: list[str]) -> set[str]:
    """Returns the names of the packages that the requirements need here, and of those that these need."""
    found = set[str]()
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" in requirement or "emscripten' and" in requirement:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found |= {name, *dependencies(distribution.requires or [])}
    return found


def test_a_type_checker_reads_the_types_of_the_client_alone_and_beside_the_server(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from tailrace import Client\n"
        "from tailrace.client.events import Delta\n"
        'text: int = Client().ask("Hi.").done().text\n'
        "delta: int = Delta(text='').text\n"
    )
    venv = Venv(tmp_path / "venv")
    for wheel in (wheels["tailrace-client"], wheels["tailrace"]):
        venv.install(wheel)
        command = [sys.executable, "-m", "mypy", "--python-executable", str(venv.python), "--follow-imports", "silent"]
        found = subprocess.run(
            [*command, "--no-incremental", str(program)],
            cwd=tmp_path,
            env=inherited_environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=150,
        )
        errors = re.findall(r"expression has type .*", found.stdout)
        assert errors == ['expression has type "str", variable has type "int")  [assignment]'] * 2, found.stdout


def test_the_wheel_of_the_client_has_each_module_twice(wheels: dict[str, Path]) -> None:
    """To be imported, and for type checkers. A new module must be listed in client/pyproject.toml."""
    names = set(zipfile.ZipFile(wheels["tailrace-client"]).namelist())
    modules = {path.stem for path in (CHECKOUT / "client").glob("*.py")} - {"import_name"}
    assert {f"tailrace_client/client/{module}.py" for module in modules} <= names
    assert {f"tailrace-stubs/client/{module}.pyi" for module in modules} <= names
    assert {name.partition("/")[0] for name in names} == {
        "tailrace.py",
        "tailrace_client",
        "tailrace-stubs",
        f"tailrace_client-{VERSION}.dist-info",
    }
