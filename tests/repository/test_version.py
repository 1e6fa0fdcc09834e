"""The version that processes tell is the project's."""

import tomllib
from pathlib import Path

from tailrace.proto.version import VERSION

CHECKOUT = Path(__file__).parents[2]


def test_the_version_is_that_of_the_project() -> None:
    """It stands in two places, and whoever moves one of them moves the other."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
