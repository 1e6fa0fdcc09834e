"""GitHub's workflows and the documentation's site, as far as they can be checked without GitHub and MkDocs."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tailrace.proto.version import VERSION
from tests.harness.processes import CHECKOUT
from tools.docs_site import find_pages, indent_items, navigation, to_repository

BIN = Path(sys.executable).parent
GITHUB = CHECKOUT / ".github"
WORKFLOWS = sorted(GITHUB.glob("workflows/*.yml"))
# check-jsonschema takes three seconds of CPU time to start.
pytestmark = pytest.mark.timeout(180)
SCHEMAS = {"vendor.github-workflows": WORKFLOWS, "vendor.dependabot": [GITHUB / "dependabot.yml"]}


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_file_fits_its_schema(schema: str) -> None:
    run(BIN / "check-jsonschema", "--builtin-schema", schema, *SCHEMAS[schema])


def test_zizmor_finds_no_risk() -> None:
    """Such as a stored credential, or an expression in a shell command."""
    run(BIN / "zizmor", "--offline", "--no-progress", GITHUB)


@pytest.mark.rule("S17")
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_and_nothing_is_permitted_by_default(path: Path) -> None:
    text = path.read_text()
    workflow = msgspec.yaml.decode(text)
    assert workflow["permissions"] == {}
    assert all("permissions" in job and "timeout-minutes" in job for job in workflow["jobs"].values())
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert all(re.fullmatch(r"[\w/.-]+@[0-9a-f]{40}", action) for action in used)
    targets = re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:run:|bookworm) make (\w+)", text)) <= set(targets)


def test_a_release_is_made_only_of_a_tag_with_its_version() -> None:
    """The image follows the files, whose job refuses another tag before it builds anything."""
    jobs = msgspec.yaml.decode((GITHUB / "workflows/release.yml").read_bytes())["jobs"]
    assert jobs["image"]["needs"] == "files"
    (command,) = (step["run"] for step in jobs["files"]["steps"] if step.get("name", "").startswith("check"))
    for tag, is_accepted in {f"v{VERSION}": True, f"v{VERSION}.1": False, "v": False, "v0,1,0": False}.items():
        done = subprocess.run(["sh", "-c", command], cwd=CHECKOUT, env={"GITHUB_REF_NAME": tag}, check=False)
        assert (done.returncode == 0) == is_accepted, tag


def test_the_navigation_of_the_site_has_every_page() -> None:
    index = (CHECKOUT / "docs/README.md").read_text()
    named = set(re.findall(r"(\S+\.md)$", navigation(index), re.MULTILINE))
    assert named == {str(path) for path in find_pages() if path.suffix == ".md"}


def test_the_content_of_list_items_is_indented_by_four_columns() -> None:
    page = "1. One:\n\n   ```sh\n   - x\n   ```\n\n   - two\n     more\n\n```\n1. code\n   stays\n```"
    wanted = "1. One:\n\n    ```sh\n    - x\n    ```\n\n    - two\n        more\n\n```\n1. code\n   stays\n```"
    assert "\n".join(indent_items(page.split("\n"))) == wanted


@pytest.mark.parametrize(
    ("link", "repository", "replaced"),
    [
        ("[A](API.md#x)", "", "[A](API.md#x)"),
        ("[B](../web/react.js)", "", "B"),
        ("[B](../web/react.js#L1)", "https://x/blob/main", "[B](https://x/blob/main/web/react.js#L1)"),
        ("[C](https://example.com)", "", "[C](https://example.com)"),
    ],
)
def test_links_to_source_files_lead_to_the_repository(link: str, repository: str, replaced: str) -> None:
    assert to_repository(link, Path("docs/README.md"), set(find_pages()), repository) == replaced
