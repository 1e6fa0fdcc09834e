"""tools/dependencies.csv explains what pyproject.toml and web/package.json ask for; the lock files pin it."""

import csv
import json
import re
import subprocess
import tomllib
from importlib.metadata import metadata
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SPDX = re.compile(r"\b(?:MIT|[A-Z]+-\d-Clause|[A-Z][A-Za-z]*-\d\.\d)\b")


def required_packages(extra: str | None = None) -> set[str]:
    """The names of the packages that pyproject.toml asks for, with those of an extra."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = project["dependencies"] + (extras[extra] if extra else [])
    if "tailrace[test]" in wanted:
        wanted = [line for line in wanted if line != "tailrace[test]"] + extras["test"]
    return {re.split(r"[\[=<>~ ]", line)[0] for line in wanted}


def locked_packages(lock: str) -> set[str]:
    """The names of the packages that a lock file pins with hashes."""
    pinned = re.findall(
        r"^([a-z0-9-]+)(?:\[[a-z]+\])?==.* \\\n    --hash=sha256:", (CHECKOUT / lock).read_text(), re.MULTILINE
    )
    return set(pinned)


def documented_licences() -> dict[str, set[str]]:
    """The licences of each package in tools/dependencies.csv, as SPDX identifiers."""
    with (CHECKOUT / "tools/dependencies.csv").open(newline="") as file:
        return {
            name: set(SPDX.findall(re.sub(r"\(.*\)", "", row["licence"])))
            for row in csv.DictReader(file)
            for name in re.sub(r"\(.*\)", "", row["package"]).replace(",", "").split()
        }


def test_every_dependency_is_documented() -> None:
    """tools/dependencies.csv has a row for each package, and no other."""
    bundled = set(json.loads((CHECKOUT / "web/package.json").read_text())["devDependencies"])
    assert set(documented_licences()) == required_packages("dev") | bundled


def test_documented_modules_exist() -> None:
    """A module that moves takes its row along."""
    text = "".join((CHECKOUT / path).read_text() for path in ("tools/dependencies.csv", "tools/own_code.csv"))
    folders = "client|deploy|features|gateway|generators|persistence|protocols|proto|web"
    named = set(re.findall(rf"`((?:{folders})/[\w/.]*)`", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not (CHECKOUT / name).exists()] == []


def test_documented_licences_are_those_of_the_packages() -> None:
    """Of the packages whose metadata name their licence by its SPDX identifier."""
    for name in required_packages("dev"):
        about = metadata(name).json
        named = SPDX.findall(str(about.get("license_expression") or about.get("license") or ""))
        assert set(named) - documented_licences()[name] == set(), name


@pytest.mark.rule("S17")
def test_every_dependency_is_locked_with_its_hashes() -> None:
    """`make run` and `make test` install only packages whose hashes are known."""
    assert required_packages() - locked_packages("locks/product.lock") == set()
    assert required_packages("dev") - locked_packages("locks/dev.lock") == set()
    assert required_packages("test") - locked_packages("locks/test.lock") == set()
    assert required_packages("otlp") - locked_packages("locks/container.lock") == set()


def test_the_product_installs_no_development_tool() -> None:
    """`make run` installs what the product needs, and no client library, test runner or linter."""
    assert locked_packages("locks/product.lock") & (required_packages("dev") - required_packages()) == set()


def test_one_test_needs_the_product_and_little_more() -> None:
    """`make setup-test` installs no Node, browser, linter, client library or proxy: those take 1.1 GB."""
    added = locked_packages("locks/test.lock") - locked_packages("locks/product.lock")
    needed_by_pytest = {"colorama", "coverage", "execnet", "iniconfig", "packaging", "pluggy", "sortedcontainers"}
    assert added - required_packages("test") - needed_by_pytest == set()
    command = ["make", "--always-make", "--dry-run", "setup-test"]
    made = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r" -r (\S+)(?: \|\| .*)?$", made, re.MULTILINE) == [
        "locks/pip.lock",
        "locks/test.lock",
    ]


@pytest.mark.parametrize(
    "lock",
    [
        "locks/product.lock",
        "locks/pip.lock",
        "locks/test.lock",
        "locks/dev.lock",
        "locks/container.lock",
        "locks/docs.lock",
        "locks/litellm.lock",
        "locks/clients.lock",
    ],
)
def test_lock_files_name_no_package_index(lock: str) -> None:
    """The package index is a setting of the machine."""
    assert "://" not in (CHECKOUT / lock).read_text()


@pytest.mark.rule("S17")
def test_malicious_releases_of_litellm_are_not_locked() -> None:
    """1.82.7 and 1.82.8 (March 2026) contained malware: the locked release is newer."""
    lock = (CHECKOUT / "locks/litellm.lock").read_text()
    found = re.search(r"^litellm==(\d+)\.(\d+)\.(\d+) \\\n    --hash=sha256:", lock, re.MULTILINE)
    assert found is not None
    assert tuple(map(int, found.groups())) > (1, 82, 8)
