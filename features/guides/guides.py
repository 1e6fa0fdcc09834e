"""The guides: Markdown files of the package, as HTML, and the search for words in their sections."""

import math
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

INDEX = "README"
FOUND_MAX = 30
EXCERPT_CHARS = 160
# Words of users, and the words that the guides have for the same thing.
SYNONYMS = {
    "callback": ("webhook",),
    **dict.fromkeys(("wsgi", "rails", "laravel", "php"), ("flask",)),
    **dict.fromkeys(("ios", "android", "flutter", "iphone"), ("mobile",)),
    **dict.fromkeys(("team", "teams", "company", "customer"), ("tenant", "project")),
    **dict.fromkeys(("gdpr", "privacy"), ("erase", "erasure")),
    **dict.fromkeys(("price", "money", "spend", "bill"), ("cost",)),
    **dict.fromkeys(("helm", "k8s"), ("kubernetes",)),
    **dict.fromkeys(("docker", "podman"), ("container",)),
    **dict.fromkeys(("sso", "oauth", "oidc"), ("jwt",)),
    **dict.fromkeys(("abort", "interrupt"), ("cancel",)),
    **dict.fromkeys(("crash", "crashes"), ("kill",)),
}
# Pages of evidence come after those that say how to do something.
EVIDENCE = frozenset({"SHIPPED", "FINDINGS", "DEPENDENCIES", "KILLS", "BENCHMARKS", "FAULTS", "CLIENTS", "PROGRAMS"})
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
# A line that is only a link to the generated tables of a guide, which are shown in its place.
_TABLES = re.compile(r"^\[[^\]]+\]\((tables/\w+\.md)\)$", re.MULTILINE)
# A row of the index about a page that the package does not have.
_ABSENT_PAGE = re.compile(r"^\| \[[^\]]+\]\([^)]*/[^)]*\) \|.*\n", re.MULTILINE)
_DIVIDER = re.compile(r"^\|[-:| ]+$", re.MULTILINE)
_HEADING = re.compile(r"#{1,4} ")
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\([^)]*\)")
_GUIDE = re.compile(r"^(?:\./)?([A-Za-z0-9_]+)\.md(#.*)?$")


class Guide(NamedTuple):
    """A guide: its title, and its content as HTML."""

    title: str
    html: str


class Section(NamedTuple):
    """The text under one heading of a guide."""

    guide: str
    """The name of the guide, such as `API`."""
    title: str
    """The title of the guide."""
    heading: str
    anchor: str
    text: str


class Hit(NamedTuple):
    """A section that a search has found."""

    section: Section
    excerpt: str
    has_all: bool
    """Whether the section contains all words of the search."""


@cache
def names() -> tuple[str, ...]:
    """Returns the names of the guides, such as `API`, in alphabetical order."""
    folder = files("tailrace") / "docs"
    return tuple(sorted(one.name.removesuffix(".md") for one in folder.iterdir() if one.name.endswith(".md")))


@cache
def read(name: str) -> Guide:
    """Returns a guide. Raises KeyError if there is none of this name."""
    tokens = _parse(name)
    return Guide(next(_sections(name)).title, _markdown().renderer.render(tokens, _markdown().options, {}))


def search(wanted: str) -> list[Hit]:
    """Returns the sections that contain all words of `wanted`, at most FOUND_MAX.

    A section that has a synonym has the word. If no section contains all of them, those that contain the rarest of
    them. First the sections whose heading contains
    rare words, then the sections in which these occur most.
    """
    # A word that is repeated a hundred times must not cost a hundred searches.
    words = list(dict.fromkeys(wanted.lower().split()))
    sections = [(one, one.heading.lower(), f"{one.heading} {one.text}".lower()) for one in _all_sections()]
    alternatives = {word: (word, *SYNONYMS.get(word, ())) for word in words}

    def has(text: str, word: str) -> bool:
        return any(one in text for one in alternatives[word])

    counts = {word: sum(has(text, word) for *_, text in sections) for word in words}
    # A word of every section, such as `a`, weighs nothing beside the others.
    weights = {word: math.log(1 + len(sections) / count) for word, count in counts.items() if count}
    if not weights:
        return []
    covered = [sum(weight for word, weight in weights.items() if has(text, word)) for *_, text in sections]

    def rank(heading: str, text: str) -> float:
        # The plural is the same word.
        parts = {part for one in re.findall(r"[\w-]+", heading) for part in (one, one.removesuffix("s"))}
        times = {word: sum(map(text.count, alternatives[word])) for word in weights}
        in_heading = {word for word in weights if parts & set(alternatives[word])}
        return sum(weights[word] * ((word in in_heading) + count / (count + 1)) for word, count in times.items())

    most = max(covered)
    best = [one for one, weight in zip(sections, covered, strict=True) if weight == most]
    best.sort(key=lambda one: (one[0].guide not in EVIDENCE, rank(*one[1:])), reverse=True)
    has_all = len(weights) == len(words) and all(has(best[0][2], word) for word in words)
    rarest = max(weights, key=lambda word: (has(best[0][2], word), weights[word]))
    return [Hit(one, _excerpt(one.text, *alternatives[rarest]), has_all) for one, *_ in best[:FOUND_MAX]]


@cache
def _markdown() -> MarkdownIt:
    # Markup in a guide is shown as text.
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _parse(name: str) -> list[Token]:
    """Returns the tokens of a guide, with GitHub's anchors of headings, and links to guides. Raises KeyError."""
    tokens = _markdown().parse(_text(name))
    for at, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", _anchor(_plain(tokens[at + 1].content)))
        if token.type in {"table_open", "fence", "code_block"}:
            # A keyboard can scroll the element.
            token.attrSet("tabindex", "0")
        for link in token.children or ():
            if link.type == "link_open":
                _point(link)
    return tokens


def _text(name: str) -> str:
    if name not in names():
        raise KeyError(name)
    folder = files("tailrace") / "docs"

    def tables(link: re.Match[str]) -> str:
        # The links in a table are relative to its folder.
        return (folder / link[1]).read_text("utf-8").replace("](../", "](").strip()

    text = _TABLES.sub(tables, (folder / f"{name}.md").read_text("utf-8"))
    return _ABSENT_PAGE.sub("", text) if name == INDEX else text


def _point(link: Token) -> None:
    """Lets a link to a file of the repository lead to a guide, or nowhere if the package does not have the file."""
    href = str(link.attrGet("href"))
    if found := _GUIDE.match(href):
        link.attrSet("href", f"/guides/{found[1]}{found[2] or ''}")
    elif not href.startswith(("https://", "http://", "#")):
        link.attrs = {}


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _plain(markdown: str) -> str:
    """Returns the text of some Markdown on one line, without links and the marks of headings, code and tables."""
    text = _DIVIDER.sub("", _LINK.sub(r"\1", markdown)).replace("|", " ")
    return " ".join(re.sub(r"[`*]|^#+", "", text, flags=re.MULTILINE).split())


def _sections(name: str) -> Iterator[Section]:
    # Not from the tokens: to parse all guides takes a second.
    title, heading, lines, is_code = "", "", list[str](), False
    for line in [*_text(name).splitlines(), "# "]:
        is_code ^= line.lstrip().startswith("```")
        if is_code or not _HEADING.match(line):
            lines.append(line)
            continue
        if heading:
            yield Section(name, title, heading, _anchor(heading), _plain("\n".join(lines)))
        heading, lines = _plain(line), []
        title = title or heading


@cache
def _all_sections() -> tuple[Section, ...]:
    return tuple(section for name in names() for section in _sections(name))


def _excerpt(text: str, *words: str) -> str:
    """Returns the part of the text around the first of the words that it has, from one word to another."""
    at = next((at for word in words if (at := text.lower().find(word)) >= 0), 0)
    start = 0 if at < EXCERPT_CHARS // 4 else text.rfind(" ", 0, at - EXCERPT_CHARS // 4) + 1
    space = text.rfind(" ", 0, start + EXCERPT_CHARS)
    end = len(text) if len(text) <= start + EXCERPT_CHARS else max(space, at)
    return f"{ELLIPSIS if start else ''}{text[start:end]}{ELLIPSIS if end < len(text) else ''}"
