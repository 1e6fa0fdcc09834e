"""Builds the documentation as a site with search, and checks all links between pages: `make docs`.

The pages stay as they are for readers of the repository. A copy gets what MkDocs needs: links to source files become
links to the repository, or plain text if it is not known, and the content of list items is indented by four columns.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUT = ROOT / "dist/docs"
# Pages with a generated part (tools/generated_pages.py), which the site has in the place of the repository's.
GENERATED = ROOT / "dist/generated"
# The place of the generated part in a page: a line that is only a link to it, for readers of the repository.
MARK = re.compile(r"^\[[^\]]+\]\((?:docs/)?tables/\w+\.md\)$", re.MULTILINE)
# Folders and files of the site, as in the repository. README.md is its first page.
PAGES = (
    *("*.md", "docs/*.md", "docs/adr/*.md", "examples/*.md", "proto/PROTOCOL.md"),
    *("docs/*.json", "docs/*.conf", "docs/images/*"),
)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?!\w+:|#)([^)\s#]+)(#[^)\s]*)?\)")
ITEM = re.compile(r"(\d+\.|-) +")
FENCE = re.compile(r"```|~~~")
INDENT = " " * 4
SECTION = re.compile(r"^## (.+)$|^\| \[([^\]]+)\]\(([^)]+)\)", re.MULTILINE)


def find_pages() -> dict[Path, Path]:
    """Returns the files of the site: their paths in it, and where they are."""
    folders = (ROOT, GENERATED)
    return {path.relative_to(of): path for of in folders for pattern in PAGES for path in sorted(of.glob(pattern))}


def to_repository(text: str, page: Path, pages: set[Path], repository: str) -> str:
    """Replaces links that leave the site. `page` is the path of the page in it."""

    def replace(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(page.parent / link[2]))
        if target in pages:
            return link[0]
        return f"[{link[1]}]({repository}/{target.as_posix()}{link[3] or ''})" if repository else link[1]

    return LINK.sub(replace, text)


def indent_items(lines: Sequence[str]) -> Iterator[str]:
    """Indents the content of list items as MkDocs requires; the pages indent it to the item's text (CommonMark)."""
    at = 0
    while at < len(lines):
        line = lines[at]
        at += 1
        if FENCE.match(line):
            yield line
            while at < len(lines) and not FENCE.match(lines[at]):
                yield lines[at]
                at += 1
            yield from lines[at : at + 1]
            at += 1
        elif item := ITEM.match(line):
            width = item.end()
            begin = at
            while at < len(lines) and (not lines[at].strip() or lines[at].startswith(" " * width)):
                at += 1
            yield line
            for inner in indent_items([one[width:] for one in lines[begin:at]]):
                yield f"{INDENT}{inner}" if inner.strip() else ""
        else:
            yield line


def navigation(index: str) -> str:
    """Returns the navigation of docs/README.md as YAML: its sections, and the pages of their tables. Last, the ADRs."""
    rows = ["nav:", "  - All pages: docs/README.md"]
    for section, title, target in SECTION.findall(index):
        rows.append(f"  - {section}:" if section else f"      - {title}: {os.path.normpath(Path('docs') / target)}")
    rows += ["  - Decision records:", *(f"      - {path}" for path in find_pages() if path.parent.name == "adr")]
    # docs/README.md also lists a JSON file.
    return "\n".join(row for row in rows if row.endswith((":", ".md"))) + "\n"


def write_pages(folder: Path, repository: str) -> None:
    """Writes the pages and MkDocs' configuration into a new folder."""
    files = find_pages()
    for path, source in files.items():
        target = folder / "pages" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".md":
            shutil.copy(source, target)
            continue
        text = "\n".join(indent_items(source.read_text(encoding="utf-8").split("\n")))
        target.write_text(to_repository(text, path, set(files), repository), encoding="utf-8")
    config = (ROOT / "tools/mkdocs.yml").read_text(encoding="utf-8")
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    (folder / "mkdocs.yml").write_text(config + navigation(index), encoding="utf-8")


def main() -> int:
    """Builds the site; returns the exit status of MkDocs, which is 1 for a broken link."""
    parser = argparse.ArgumentParser(prog="python -m tools.docs_site", description=__doc__)
    parser.add_argument("--repository", default="", help="URL of the source files, such as https://…/blob/main")
    given = parser.parse_args()
    shutil.rmtree(OUT, ignore_errors=True)
    write_pages(OUT, given.repository.rstrip("/"))
    mkdocs = Path(sys.executable).with_name("mkdocs")
    command: list[str | Path] = [mkdocs, "build", "--strict", "-f", OUT / "mkdocs.yml"]
    status = subprocess.run(command, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, check=False).returncode
    if status == 0:
        print(f"{OUT / 'site'}: open index.html, or serve the folder")
    return status


if __name__ == "__main__":
    sys.exit(main())
