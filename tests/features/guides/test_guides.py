"""The guides: their pages, links and search, and what a gateway serves of them."""

import re
import time
from html import escape

import pytest

from tailrace.features.guides import guides
from tests.integration.conftest import Gateway

HOSTILE = '<script>x</script>"'


def test_each_link_of_a_guide_leads_to_a_heading_of_a_guide() -> None:
    pages = {name: guides.read(name).html for name in guides.names()}
    anchors = {name: set(re.findall(r'<h\d id="([^"]+)"', html)) for name, html in pages.items()}
    links = [
        (name, *link) for name, html in pages.items() for link in re.findall(r'href="/guides/(\w+)(#[^"]*)?"', html)
    ]
    missing = [link for link in links if link[1] not in anchors or (link[2] and link[2][1:] not in anchors[link[1]])]
    assert len(links) > 50
    assert missing == []


def test_a_link_to_a_file_that_the_package_does_not_have_is_text() -> None:
    hrefs = {href for name in guides.names() for href in re.findall(r'href="([^"]*)"', guides.read(name).html)}
    assert {href for href in hrefs if not href.startswith(("https://", "http://", "#", "/guides/"))} == set()


def test_the_index_names_only_pages_that_it_links_to() -> None:
    """README, ARCHITECTURE and others are in the repository alone. Each table still has rows."""
    html = guides.read(guides.INDEX).html
    assert re.findall("<a>[^<]*", html) == []
    assert "<tbody>" in html
    assert html.count("<thead>") == html.count("<tbody>")
    listed = set(re.findall(r'href="/guides/(\w+)"', html))
    assert listed == set(guides.names()) - {guides.INDEX}


def test_the_index_names_each_guide_by_its_title() -> None:
    """A new user looks for what a page is about, and not for the name of a file."""
    links = re.findall(r'<a href="/guides/(\w+)">(.*?)</a>', guides.read(guides.INDEX).html)
    assert len(links) > 40
    assert [(name, re.sub("<[^>]*>", "", text)) for name, text in links] == [
        (name, escape(guides.read(name).title, quote=False)) for name, _ in links
    ]


def test_each_found_section_is_a_heading_of_its_page_and_has_all_words() -> None:
    """Words in a heading come first. Upper and lower case are the same."""
    hits = guides.search("Last-Event-ID cursor")
    assert hits
    for hit in hits:
        assert f'id="{hit.section.anchor}"' in guides.read(hit.section.guide).html
        text = f"{hit.section.heading} {hit.section.text}".lower()
        assert "last-event-id" in text
        assert "cursor" in text
        assert len(hit.excerpt) <= guides.EXCERPT_CHARS + 2
    assert "postgresql" in guides.search("postgresql")[0].section.heading.lower()
    assert guides.search("nosuchword") == guides.search(" ") == []


@pytest.mark.parametrize(
    ("wanted", "section"),
    [
        ("cost of a user by model", "API#cost-of-a-user-by-model"),
        ("why was Tuesday expensive", "COMMAND_LINE#cost-of-a-user-by-model-why-was-tuesday-expensive"),
        ("budget per team", "ADMIN#limits-and-budgets-of-a-tenant"),
        ("webhook body", "API#body-of-a-webhook-store-answers-in-your-own-database"),
        ("store answers in my own database", "API#body-of-a-webhook-store-answers-in-your-own-database"),
        ("own database", "API#body-of-a-webhook-store-answers-in-your-own-database"),
        ("slack", "API#body-of-a-webhook-store-answers-in-your-own-database"),
        ("flask", "PYTHON#flask-django-and-other-wsgi-servers"),
        ("django", "PYTHON#flask-django-and-other-wsgi-servers"),
        ("swift", "API#mobile-apps-and-generated-clients"),
        ("android", "API#mobile-apps-and-generated-clients"),
        ("docker", "CONTAINERS#run-tailrace-in-containers"),
        ("helm", "KUBERNETES#run-tailrace-on-kubernetes"),
        ("chat in your app", "CHAT#chat-in-your-app"),
        ("private users", "AUTH#private-users"),
        ("rotate key", "ADMIN#keys"),
        ("a turn that is in a session with erasure", "ERASURE#when-the-bytes-are-gone"),
        # No section has this word.
        ("rotate key unicorn", "ADMIN#keys"),
    ],
)
def test_a_question_finds_its_section_first(wanted: str, section: str) -> None:
    """Rare words count more than those of every section, and those of a heading more than those of the text."""
    first = guides.search(wanted)[0].section
    assert f"{first.guide}#{first.anchor}" == section


@pytest.mark.parametrize(
    ("guide", "cell"),
    [
        ("SETTINGS", "TAILRACE_ATTEMPTS_MAX"),
        ("METRICS", "tailrace_ready"),
        ("ALERTS", "ProcessDown"),
        ("ERRORS", "persistence_unavailable"),
        ("RUNBOOK", "SQLITE_FULL"),
    ],
)
def test_a_guide_shows_its_generated_tables(guide: str, cell: str) -> None:
    """Their files are part of the package. A search finds their words, too."""
    html = guides.read(guide).html
    assert re.search(rf"<td>(<code>)?{cell}", html)
    assert guide in {hit.section.guide for hit in guides.search(cell)}
    assert not [name for name in guides.names() if "tables/" in guides.read(name).html]


def test_a_repeated_word_is_searched_once() -> None:
    """The route is public. A hundred words `e` in one request took 0.3 s of CPU."""

    def cpu_s(wanted: str) -> float:
        began = time.process_time()
        guides.search(wanted)
        return time.process_time() - began

    guides.search("e")
    once = min(cpu_s("e") for _ in range(5))
    assert min(cpu_s("e " * 100) for _ in range(5)) < 10 * once
    assert guides.search("cursor cursor") == guides.search("cursor")


@pytest.mark.rule("S8")
async def test_the_guides_are_public_and_escape_what_is_searched(gateway: Gateway) -> None:
    """They have no script. Only the form of the search may send something, to this server."""
    async with gateway.new_client() as client:
        del client.headers["authorization"]
        index = await client.get("/guides")
        found = await client.get("/guides", params={"q": "takeover"})
        partly = await client.get("/guides", params={"q": "takeover nosuchword"})
        hostile = await client.get("/guides", params={"q": HOSTILE})
        guide = await client.get("/guides/CONCEPTS")
        absent = [(await client.get(f"/guides/{name}")).status_code for name in ("nothing", "..%2fREADME", "API.md")]
    assert (index.status_code, found.status_code, guide.status_code, absent) == (200, 200, 200, [404, 404, 404])
    assert 'href="/guides/API"' in index.text
    assert re.search(r'<h2><a href="/guides/\w+#[^"]+">', found.text)
    assert "No section contains" not in found.text
    assert "No section contains all of these words. These contain some of them." in partly.text
    assert '<h2><a href="/guides/CONCEPTS#' in partly.text
    assert "No section contains" in hostile.text
    assert HOSTILE not in hostile.text
    assert all("<script" not in page.text for page in (index, found, guide, hostile))
    policy = guide.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "form-action 'self'" in policy
    assert "script-src" not in policy
