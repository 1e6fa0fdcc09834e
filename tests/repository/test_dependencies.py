"""What pyproject.toml asks for, docs/DEPENDENCIES.md explains, and requirements.lock and requirements-dev.lock pin."""

import re
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


def required(extra: str | None = None) -> set[str]:
    """The names of the packages that pyproject.toml asks for, with those of an extra."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"][extra] if extra else [])
    return {re.split(r"[\[=<>~ ]", line)[0] for line in wanted}


def locked(lock: str) -> set[str]:
    """The names of the packages that a lock file pins with hashes."""
    pinned = re.findall(
        r"^([a-z0-9-]+)(?:\[[a-z]+\])?==.* \\\n    --hash=sha256:", (CHECKOUT / lock).read_text(), re.MULTILINE
    )
    return set(pinned)


def test_every_dependency_is_explained() -> None:
    """Nobody adds a package without a line on what it is for."""
    rows = re.findall(r"^\| ([a-z][^|]*) \|", (CHECKOUT / "docs/DEPENDENCIES.md").read_text(), re.MULTILINE)
    explained = {name for row in rows for name in re.sub(r"\(.*\)", "", row).replace(",", "").split()}
    assert explained - {"package"} == required("dev")


@pytest.mark.rule("S17")
def test_every_dependency_is_locked_with_its_hashes() -> None:
    """`make run` and `make test` install only packages whose hashes are known."""
    assert required() - locked("requirements.lock") == set()
    assert required("dev") - locked("requirements-dev.lock") == set()


def test_the_product_installs_no_development_tool() -> None:
    """`make run` installs what the product needs, and no client library, test runner or linter."""
    assert locked("requirements.lock") & (required("dev") - required()) == set()


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", "requirements-litellm.lock"])
def test_a_lock_names_no_address(lock: str) -> None:
    """Where packages come from is the machine's setting, not ours."""
    assert "://" not in (CHECKOUT / lock).read_text()


@pytest.mark.rule("S17")
def test_the_poisoned_releases_of_litellm_are_never_installed() -> None:
    """1.82.7 and 1.82.8 (March 2026): what is locked is newer, with the hashes of what was tried."""
    lock = (CHECKOUT / "requirements-litellm.lock").read_text()
    found = re.search(r"^litellm==(\d+)\.(\d+)\.(\d+) \\\n    --hash=sha256:", lock, re.MULTILINE)
    assert found is not None
    assert tuple(map(int, found.groups())) > (1, 82, 8)
