"""What `make shipped` takes from the pages and from compose.yaml is there."""

import re

import msgspec
import pytest

from tests.harness.processes import CHECKOUT
from tests.shipped.compose import HERE, STAND_INS
from tests.shipped.pages import SUBSTITUTIONS, Page

# The blocks that the homes run, by page and heading.
BLOCKS = {
    ("SYSTEMD.md", ""): 1,
    ("SYSTEMD.md", "One machine"): 3,
    ("SYSTEMD.md", "Three machines"): 5,
    ("CONTAINERS.md", "Start it"): 3,
    ("CONTAINERS.md", "Allow access from other machines"): 1,
    ("CONTAINERS.md", "Upgrade without a repeated model call"): 4,
}


@pytest.mark.parametrize("name", SUBSTITUTIONS)
def test_each_substitution_is_of_a_command_of_its_page(name: str) -> None:
    assert Page(name).unused == set()


@pytest.mark.parametrize(("name", "heading"), BLOCKS)
def test_a_page_has_the_blocks_that_a_home_runs(name: str, heading: str) -> None:
    assert len(Page(name).blocks[heading]) == BLOCKS[name, heading]


def test_each_image_of_another_project_has_a_stand_in() -> None:
    services = msgspec.yaml.decode((CHECKOUT / HERE / "compose.yaml").read_bytes())["services"]
    others = {name for name, service in services.items() if "image" in service and "<<" not in service}
    stages = re.findall(r" AS (\S+)$", (STAND_INS / "Dockerfile").read_text(), re.MULTILINE)
    assert set(stages) == {name for name in others if not services[name]["image"].startswith("tailrace:")}
