"""The wheel: what it contains, and that a Tailrace installed from it answers a turn."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.harness.generator_in_loop import words
from tests.harness.processes import CHECKOUT, inherited_environ

UV = Path(sys.executable).parent / "uv"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from its source archive, as `uv build` does by default."""
    folder = tmp_path_factory.mktemp("dist")
    command = [str(UV), "build", "--quiet", "--offline", "--no-build-isolation", "--python", sys.executable]
    subprocess.run([*command, "--out-dir", str(folder), str(CHECKOUT)], check=True, timeout=60)
    return next(folder.glob("*.whl"))


@pytest.fixture
def installed_environ(wheel: Path, tmp_path: Path) -> dict[str, str]:
    """An environment in which `tailrace` comes from the wheel, its dependencies from this venv."""
    target = tmp_path / "site"
    # pip compiles by default, uv does not: each process of `up` would compile the same modules at its start.
    command = [str(UV), "pip", "install", "--quiet", "--offline", "--no-deps", "--compile-bytecode"]
    subprocess.run([*command, "--python", sys.executable, "--target", str(target), str(wheel)], check=True, timeout=60)
    return inherited_environ() | {
        "PYTHONPATH": str(target),
        "PYTHONSAFEPATH": "1",
        "NO_PROXY": "127.0.0.1",
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "XDG_STATE_HOME": str(tmp_path / "state"),
    }


# Of the client alone (tests/integration/test_client_wheel.py).
CLIENT_ALONE = ("client/import_name.py", "client/pyproject.toml", "client/types/")
PACKAGES = ("client", "deploy", "features", "gateway", "generators", "persistence", "proto", "protocols", "testing")


def test_the_wheel_has_the_files_of_the_packages_under_one_import_name(wheel: Path) -> None:
    """A top-level `proto` or `gateway` would shadow a package of the same name in the user's environment."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *PACKAGES, "tailrace/*.*"]
    listed = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [name for name in listed if (CHECKOUT / name).is_file() and not name.startswith(CLIENT_ALONE)]
    expected = {f"tailrace/{name.removeprefix('tailrace/')}" for name in files}
    documents = [path for pattern in ("*.md", "*.csv", "tables/*.md") for path in (CHECKOUT / "docs").glob(pattern)]
    expected |= {f"tailrace/{path.relative_to(CHECKOUT)}" for path in documents}
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"tailrace", "tailrace-0.1.0.dist-info"}
    assert {name for name in names if name.startswith("tailrace/")} == expected


@pytest.mark.timeout(180)
def test_a_type_checker_reads_the_types_of_an_installed_client(
    installed_environ: dict[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text('from tailrace import Client\n\ntext: int = Client().ask("Hi.").done().text\n')
    command = [sys.executable, "-m", "mypy", "--no-incremental", "--follow-imports", "silent", str(program)]
    found = subprocess.run(
        command, cwd=tmp_path, env=installed_environ, capture_output=True, text=True, check=False, timeout=150
    )
    assert 'expression has type "str", variable has type "int"' in found.stdout


# Five processes begin with an empty cache of the disk: 15 s of CPU time, of which a busy machine gives a quarter.
@pytest.mark.timeout(180)
def test_an_installed_tailrace_answers_a_turn_and_keeps_its_data_in_the_users_directory(
    installed_environ: dict[str, str], tmp_path: Path
) -> None:
    """From a folder with a configuration file and a `.env`, without a checkout.

    The current folder may hold packages of the same names.
    """
    folder = tmp_path / "folder"
    (folder / "tailrace").mkdir(parents=True)
    (folder / "tailrace/__init__.py").touch()
    (folder / "tailrace.toml").write_text("port = 1\n[up]\ngenerators = 1\n")
    (folder / ".env").write_text("TAILRACE_PORT=0\n")
    tailrace = [sys.executable, "-m", "tailrace"]
    version = subprocess.check_output(
        [*tailrace, "--version"], cwd=folder, env=installed_environ, text=True, timeout=60
    )
    assert version == "tailrace 0.1.0\n"
    up = subprocess.Popen(
        [*tailrace, "up"],
        cwd=folder,
        env=installed_environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert up.stdout is not None
        url = next(line.split()[-1] for line in up.stdout if line.strip().startswith("ready http"))
        program = "import sys; from tailrace import Client; print(Client(sys.argv[1]).ask(sys.argv[2]).done().text)"
        asking = [sys.executable, "-c", program, url, "Hi.\n#sim words=3"]
        answered = subprocess.run(
            asking, cwd=tmp_path, env=installed_environ, capture_output=True, text=True, check=False, timeout=60
        )
        assert answered.stdout == f"{words(3)}\n", answered.stderr
        assert (tmp_path / "data/tailrace/tailrace.db").exists()
        shown = subprocess.check_output(
            [*tailrace, "status", "--json"], cwd=folder, env=installed_environ, text=True, timeout=60
        )
        assert ("generator-1" in shown, "generator-2" in shown) == (True, False)
        assert {path.name for path in folder.iterdir()} == {"tailrace", "tailrace.toml", ".env"}
    finally:
        up.terminate()
        up.communicate(timeout=60)
    assert up.returncode == 0
